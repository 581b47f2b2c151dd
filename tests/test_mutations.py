"""The list of mutations fits the code: each text to replace occurs exactly once."""

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "mutations.py"))


@pytest.mark.parametrize("mutation", SCRIPT["MUTATIONS"], ids=lambda mutation: mutation.what)
def test_its_text_is_found_once(mutation):
    path, changed = SCRIPT["place"](mutation)
    assert changed != path.read_text()
