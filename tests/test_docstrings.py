"""Everything public has a docstring: its first line is a sentence, and it names the errors that are raised."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import bids_dmrigen

ROOT = Path(bids_dmrigen.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef
# Written by torch's rules, which say what they do; a network's docstring tells what goes in and out.
OF_TORCH = {"forward", "backward"}


class Public(NamedTuple):
    """Something public in a file."""

    name: str  # with its class
    node: ast.ClassDef | Function
    bases: tuple[str, ...] = ()  # of its class


def public(tree: ast.Module) -> Iterator[Public]:
    """Yield the public classes, methods and functions of a module; not those inside functions."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        yield Public(node.name, node)
        if isinstance(node, ast.ClassDef):
            bases = tuple(ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases)
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("_"):
                    yield Public(f"{node.name}.{method.name}", method, bases)


def raised(function: ast.AST) -> set[str]:
    """Return the names of the errors that a function raises itself; what it calls may raise more."""
    names, nodes = set(), list(ast.iter_child_nodes(function))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = error.attr if isinstance(error, ast.Attribute) else getattr(error, "id", "")
            names |= {name} if name[:1].isupper() and name != "NotImplementedError" else set()
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            nodes += ast.iter_child_nodes(node)
    return names


def silent(tree: ast.Module) -> list[str]:
    """Return the public functions of a module that raise an error which their docstring does not name."""
    found = []
    for name, node, _ in public(tree):
        if isinstance(node, Function):
            text = ast.get_docstring(node) or ""
            found += [f"{name} raises {error}" for error in sorted(raised(node)) if error not in text]
    return found


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
BASES = {p.name: p.node.bases for tree in TREES.values() for p in public(tree) if isinstance(p.node, ast.ClassDef)}
DOCUMENTED = {p.name for tree in TREES.values() for p in public(tree) if ast.get_docstring(p.node)}


def inherits(method: str, bases: tuple[str, ...]) -> bool:
    """Return whether a base class in the package has a docstring for this method."""
    for base in bases:
        above = tuple(ast.unparse(b).split("[")[0].split(".")[-1] for b in BASES.get(base, ()))
        if f"{base}.{method}" in DOCUMENTED or inherits(method, above):
            return True
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_all_that_is_public_has_a_docstring_that_says_what_it_raises(path):
    tree = TREES[path]
    assert (ast.get_docstring(tree) or "").strip()
    for name, node, bases in public(tree):
        text, method = ast.get_docstring(node), name.split(".")[-1]
        if text is None:
            assert method in OF_TORCH or inherits(method, bases), f"{name} has no docstring"
        else:
            assert text.splitlines()[0].endswith((".", "?")), f"{name}: its first line is no whole sentence"
    assert not silent(tree)


def test_an_error_that_is_not_named_is_found():
    tree = ast.parse('def f(x):\n    """Return x."""\n    if x:\n        raise ValueError("no")\n    return x')
    assert silent(tree) == ["f raises ValueError"]
    assert not silent(ast.parse('def f(x):\n    """Return x; `ValueError` for 0."""\n    raise ValueError'))
