"""The rooms of the house: imports point down only, and the light rooms stay light."""

import ast
import sys
from pathlib import Path

import pytest

import bids_dmrigen

ROOT = Path(bids_dmrigen.__file__).parent
ROOMS = ["cli", "workflow", "interfaces", "qc", "spatial", "bids", "methods", "simulate", "diffusion", "nets", "dwi"]
LIGHT = {"methods", "simulate", "diffusion", "nets", "dwi"}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)
# qc's figures and reports name their files by the table of names: a leaf without imports of its own.
ALLOWED = {("qc", "bids")}


def imports(path: Path) -> set[str]:
    """Return the absolute names of what a file imports, at any depth of its code."""
    package = ["bids_dmrigen", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    room = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "bids_dmrigen" and len(parts) > 1 and parts[1] in ROOMS:
            down = ROOMS.index(parts[1]) >= ROOMS.index(room)
            assert down or (room, parts[1]) in ALLOWED, f"{room} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(ROOT).parts[0] in LIGHT],
                         ids=lambda p: p.relative_to(ROOT).as_posix())  # fmt: skip
def test_light_rooms_import_torch_numpy_safetensors_alone(path):
    allowed = {"bids_dmrigen", "torch", "numpy", "safetensors", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(path)} <= allowed
