"""Which modules of the package import each other, from their source; `benchmarks/house.py` uses it too."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = "bids_dmrigen"


def sources(root: Path) -> dict[str, ast.Module]:
    """Return dotted module name -> syntax tree of every file of the package below a folder."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imported(name: str, tree: ast.Module, modules: dict[str, ast.Module]) -> set[str]:
    """Return the modules of the package that one imports, inside its functions too, but not for its types alone."""
    package = name if _is_package(name, modules) else name.rpartition(".")[0]
    found: set[str] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                found.add(whole if whole in modules else module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        nodes += ast.iter_child_nodes(node)
    # The __init__ of a package is shared by its modules and is no partner in a circle.
    return {module for module in found if module in modules and module != name and module != PACKAGE}


def _is_package(name: str, modules: dict[str, ast.Module]) -> bool:
    return any(other.startswith(f"{name}.") for other in modules)


def circles(modules: dict[str, ast.Module]) -> set[frozenset[str]]:
    """Return the groups of modules that import one another, directly or by way of others, lazily or not."""
    edges = {name: imported(name, tree, modules) for name, tree in modules.items()}
    reached = {name: _reached(name, edges) for name in edges}
    return {frozenset(b for b in reached[a] if a in reached[b]) | {a} for a in edges if a in reached[a]}


def _reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(edges[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += edges[name]
    return seen
