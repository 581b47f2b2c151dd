"""The rooms of the house: imports point down only, and the light rooms stay light."""

import ast
import re
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import bids_dmrigen
from bids_dmrigen.methods import REGISTRY, spec_of

from .imports import circles, sources

ROOT = Path(bids_dmrigen.__file__).parent
ROOMS = ["cli", "workflow", "interfaces", "qc", "spatial", "bids", "methods", "simulate", "diffusion", "nets", "dwi"]
LIGHT = {"methods", "simulate", "diffusion", "nets", "dwi"}
HEAVY = {"nipype", "bids", "nibabel", "ants"}
BELOW_NIPYPE = set(ROOMS[ROOMS.index("qc") :])
COMMON_WORDS = {
    "atlas",
    "interp",
    "neighbours",
    "rish",
    "sh",
    "bspline",
    "mppca",  # steps of the preprocessing have this name and the next one
    "patch2self",
}  # names of methods that mean something else too
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)
MIXED = {"generate.py"}  # has a function of its own: progress_printer


def imports(path: Path, at_import: bool = False) -> set[str]:
    """Return the absolute names of what a file imports; with `at_import` without what its functions import."""
    package = ["bids_dmrigen", *path.relative_to(ROOT).parts[:-1]]
    found, nodes = set(), [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            found |= {f"{module}.{alias.name}" for alias in node.names}
        if not (at_import and isinstance(node, ast.FunctionDef)):
            nodes += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    room = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "bids_dmrigen" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS.index(parts[1]) >= ROOMS.index(room), f"{room} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(ROOT).parts[0] in LIGHT],
                         ids=lambda p: p.relative_to(ROOT).as_posix())  # fmt: skip
def test_light_rooms_import_torch_numpy_safetensors_alone(path):
    allowed = {"bids_dmrigen", "torch", "numpy", "safetensors", *sys.stdlib_module_names}
    # A compared method may be a library's: the function that calls it imports it. None reads a file format.
    compared = path.relative_to(ROOT).parts[0] == "methods"
    assert {name.split(".")[0] for name in imports(path, at_import=compared)} <= allowed
    assert not {name.split(".")[0] for name in imports(path)} & HEAVY


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(ROOT).parts[0] in BELOW_NIPYPE],
                         ids=lambda p: p.relative_to(ROOT).as_posix())  # fmt: skip
def test_only_the_interfaces_and_the_rooms_above_import_nipype(path):
    assert not any(name.split(".")[0] == "nipype" for name in imports(path))


@pytest.mark.parametrize("path", [p for p in FILES if p.parent == ROOT / "interfaces" and p.name not in MIXED],
                         ids=lambda p: p.name)  # fmt: skip
def test_interfaces_contain_only_nipype_classes(path):
    body = ast.parse(path.read_text()).body
    assert all(isinstance(node, (ast.Expr, ast.Import, ast.ImportFrom, ast.ClassDef)) for node in body)


def test_storage_is_imported_without_torch():
    code = "import sys, bids_dmrigen.diffusion.storage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ABOVE_METHODS = [p for room in ROOMS[: ROOMS.index("methods")] for p in sorted((ROOT / room).rglob("*"))
                 if p.suffix in {".py", ".j2", ".yml", ".tsv", ".css"}]  # fmt: skip


@pytest.mark.parametrize("path", ABOVE_METHODS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_file_above_methods_names_one(path):
    """What a method needs of the rooms above it, it says in its specification."""
    text, plain = path.read_text(), {name for name in REGISTRY if name in COMMON_WORDS}
    for name in REGISTRY:
        for spelling in {spec_of(name).title, name} if name not in plain else ():
            word = rf"\b{re.escape(spelling)}\b"
            assert re.search(word, text, re.IGNORECASE) is None, f"{path.name} names {spelling}"
    if path.suffix == ".py":  # a common word may stand in a text, but nothing may be decided by it
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Compare):
                constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not constants & plain, f"{path.name}, line {node.lineno}, asks for a method by its name"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_import_resolves(path):
    """Those inside functions too, which nothing else would try before the function is called."""
    package = ["bids_dmrigen", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
            module = import_module(".".join(parts))
            for alias in node.names:
                assert hasattr(module, alias.name) or find_spec(f"{module.__name__}.{alias.name}"), alias.name


def test_no_module_imports_one_that_imports_it():
    assert not circles(sources(ROOT.parent))


def test_a_circle_is_found(tmp_path):
    for name, text in {"a": "def f():\n    from .b import g", "b": "from . import c", "c": "from .a import f"}.items():
        path = tmp_path / "bids_dmrigen" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert circles(sources(tmp_path)) == {frozenset(f"bids_dmrigen.{name}" for name in "abc")}


BENCHMARKS = sorted((ROOT.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.name)
def test_what_benchmarks_take_from_modules_is_there(path):
    """They run for hours, and no other test calls most of what they use."""
    tree, modules = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bids_dmrigen"):
            package = import_module(node.module)
            for name in node.names:
                with suppress(ImportError):
                    import_module(f"{node.module}.{name.name}")
                assert hasattr(package, name.name), f"{node.module} has no {name.name}"
                modules[name.asname or name.name] = getattr(package, name.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if isinstance(module, ModuleType):
                assert hasattr(module, node.attr), f"line {node.lineno}: {node.value.id} has no {node.attr}"
