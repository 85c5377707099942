"""Folders of our packages, and syntax trees of Python files, each parsed once in a process."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "python_backend" / "stretto", *sorted(ROOT.glob("plugins/*/stretto_*")))


def path_in_package(filename: str) -> str | None:
    """Return the path of a file inside the server's package or a plug-in's; None for a file outside them."""
    paths = (Path(filename).relative_to(folder) for folder in PACKAGES if filename.startswith(f"{folder}/"))
    return next(map(str, paths), None)


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


@cache
def statements(path: Path) -> list[ast.stmt]:
    """Return all statements of a file, including nested ones. Expressions, most of a tree, are skipped."""
    found, left = [], list[ast.AST](parsed(path).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.stmt):
            found.append(node)
        left += [each for each in ast.iter_child_nodes(node) if not isinstance(each, ast.expr)]
    return found
