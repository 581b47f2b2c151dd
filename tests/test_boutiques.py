"""The Boutiques descriptor is the parser's, and says so."""

import importlib.util
import json
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "boutiques"


def test_descriptor_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_descriptor", FOLDER / "make_descriptor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = json.loads((FOLDER / "bids_dmrigen.json").read_text())
    made = module.build()
    for descriptor in (stored, made):
        descriptor.pop("tool-version")  # follows the tags, not the parser
    assert stored == made, "run boutiques/make_descriptor.py"
    keys = {entry["value-key"] for entry in made["inputs"]}
    assert all(key in made["command-line"] for key in keys)
