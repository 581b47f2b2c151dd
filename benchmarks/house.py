"""State of the code in numbers, at two commits: how many files a new arm changes, and which rules the code keeps.

    python benchmarks/house.py                    # the working tree beside the commit before the rooms were separated
    python benchmarks/house.py --rev HEAD~20      # the working tree beside another commit

Nothing is imported from the compared commits: their files are read as text, and checked with the same mypy.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.imports import PACKAGE, circles, sources
from tests.test_docstrings import public, raised

BEFORE = "f088cf9"
LONG = 60  # lines of a function, docstring included
PASSED_ON = ("settings", "plan", "method")
APP = ("workflow", "cli", "interfaces")
NIPYPE = ("SimpleInterface", "TraitedSpec", "BaseInterfaceInputSpec", "BaseInterface")
# Methods that are registered at both commits: a file that contains one of these names depends on the methods.
METHODS = ("difusion", "qid2", "diffdti", "phydiff", "rishldm")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    """Yield every function and method of a module, also those inside others."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def files_of_an_arm(root: Path, modules: dict[str, ast.Module]) -> int:
    """Return the number of code files for a new arm: its own file, and all files that name single methods.

    A file names a method if a string in it is one of `METHODS` or an option of it. The files of a method in `methods/`
    do not count, but the registry does.
    """
    naming = set()
    for name, tree in modules.items():
        room = name.split(".")[1] if "." in name else ""
        of_a_method = room == "methods" and name != f"{PACKAGE}.methods"
        if not of_a_method and room not in ("nets", "simulate") and _names_a_method(tree):
            naming.add(name)
    return 1 + len(naming)


def _names_a_method(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if text in METHODS or any(text.startswith((f"{m}_", f"--{m}")) for m in METHODS):
            return True
    return False


def lines_beside_nipype(root: Path, modules: dict[str, ast.Module]) -> int:
    """Return the lines of `interfaces/` outside Nipype classes, without imports, docstrings and blank lines."""
    lines = 0
    for path in sorted((root / PACKAGE / "interfaces").glob("*.py")):
        text = path.read_text()
        tree, kept = ast.parse(text), set(range(1, len(text.splitlines()) + 1))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        nipype = set(NIPYPE)
        for node in [*classes, *classes]:  # twice, because a base may be defined below
            if any(
                ast.unparse(base).split(".")[-1] in nipype or "InputSpec" in ast.unparse(base) for base in node.bases
            ):
                nipype.add(node.name)
        for node in tree.body:
            doc = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_nipype = isinstance(node, ast.ClassDef) and node.name in nipype
            if doc or is_nipype or isinstance(node, ast.Import | ast.ImportFrom):
                kept -= set(range(_first_line(node), node.end_lineno + 1))
        every = text.splitlines()
        lines += sum(1 for k in kept if every[k - 1].strip() and not every[k - 1].strip().startswith("#"))
    return lines


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def long_functions(root: Path, modules: dict[str, ast.Module]) -> int:
    """Return how many functions have more than `LONG` lines, docstring included."""
    return sum(f.end_lineno - f.lineno >= LONG for tree in modules.values() for f in functions(tree))


def silent_raises(root: Path, modules: dict[str, ast.Module]) -> int:
    """Return how many public functions and methods raise an error that their docstring does not name."""
    return sum(
        any(error not in (ast.get_docstring(node) or "") for error in raised(node))
        for tree in modules.values()
        for _, node, _ in public(tree)
        if isinstance(node, Function)
    )


def type_errors(root: Path, modules: dict[str, ast.Module]) -> int:
    """Return the number of errors of mypy under this repository's settings."""
    settings = Path(__file__).parents[1] / "pyproject.toml"
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), "--cache-dir", str(root / ".mypy_cache")]
    answer = subprocess.run([*command, PACKAGE], cwd=root, capture_output=True, text=True, check=False).stdout
    return sum(": error:" in line for line in answer.splitlines())


def passed_on(name: str):
    """Return the count of functions in the rooms of the app that take a parameter of this name."""

    def count(root: Path, modules: dict[str, ast.Module]) -> int:
        rooms = [tree for module, tree in modules.items() if module.split(".")[1:2] and module.split(".")[1] in APP]
        every = [f for tree in rooms for f in functions(tree)]
        return sum(name in [a.arg for a in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]] for f in every)

    return count


def _passed_on_only(function: Function, name: str) -> bool:
    """Return whether a function has a parameter of this name and only passes it on to other functions."""
    if name not in [a.arg for a in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]]:
        return False
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    given = [value for call in calls for value in [*call.args, *(keyword.value for keyword in call.keywords)]]
    handed = sum(isinstance(value, ast.Name) and value.id == name for value in given)
    return handed == sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(function)) > 0


def climbs(name: str):
    """Return the count of functions in the rooms of the app that take a parameter only to pass it on."""

    def count(root: Path, modules: dict[str, ast.Module]) -> int:
        rooms = [tree for module, tree in modules.items() if module.split(".")[1:2] and module.split(".")[1] in APP]
        return sum(_passed_on_only(function, name) for tree in rooms for function in functions(tree))

    return count


ROWS = {
    "code files of an arm: its own, and those that name methods": files_of_an_arm,
    "lines of interfaces/ outside Nipype classes": lines_beside_nipype,
    "circles of imports": lambda root, modules: len(circles(modules)),
    f"functions over {LONG} lines": long_functions,
    "public functions that raise without saying so": silent_raises,
    "mypy errors": type_errors,
    **{f"functions of the app that take `{name}`": passed_on(name) for name in PASSED_ON},
    **{f"functions that take `{name}` only to pass it on": climbs(name) for name in PASSED_ON},
}


def state(rev: str | None, folder: Path) -> Path:
    """Return a folder with the files of a commit; None stands for the working tree."""
    repository = Path(__file__).parents[1]
    if rev is None:
        return repository
    archive = subprocess.run(["git", "archive", rev, PACKAGE], cwd=repository, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rev", default=BEFORE, help=f"the commit to compare with (default: {BEFORE})")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = {}
        for title, rev in ((args.rev, args.rev), ("now", None)):
            root = state(rev, Path(folder))
            modules = sources(root)
            table[title] = {row: count(root, modules) for row, count in ROWS.items()}
    if args.json:
        print(json.dumps(table, indent=2))
        return
    width = max(map(len, ROWS))
    print(f"{'':{width}}  {args.rev:>10}  {'now':>10}")
    for row in ROWS:
        print(f"{row:{width}}  {table[args.rev][row]:>10}  {table['now'][row]:>10}")


if __name__ == "__main__":
    main()
