"""HTML templates of the pages."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent / "data"


def page_template(name: str):
    """Return the Jinja template of this name in `qc/data`; inserted values are escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(DATA)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)
