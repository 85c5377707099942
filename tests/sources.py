"""Folders of our packages, and syntax trees of Python files, each parsed once in a process."""

import ast
import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "python_backend" / "stretto", *sorted(ROOT.glob("plugins/*/stretto_*")))

# Fields of a statement, an exception handler or a case that contain statements, handlers or cases.
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


def path_in_package(filename: str) -> str | None:
    """Return the path of a file inside the server's package or a plug-in's; None for a file outside them."""
    paths = (Path(filename).relative_to(folder) for folder in PACKAGES if filename.startswith(f"{folder}/"))
    return next(map(str, paths), None)


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file, which is kept: garbage collection meanwhile takes four times as long."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text())
    finally:
        if is_enabled:
            gc.enable()


@cache
def statements(path: Path) -> list[ast.stmt]:
    """Return all statements of a file, including nested ones. Expressions, most of a tree, are skipped."""
    found = []
    left = list[ast.AST](parsed(path).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.stmt):
            found.append(node)
        for name in BLOCKS:
            left += getattr(node, name, ())
    return found


def walk(root: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all nodes below it, in any order and without contexts: faster than `ast.walk`."""
    left = [root]
    while left:
        node = left.pop()
        yield node
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                left += [child for child in value if isinstance(child, ast.AST)]
            elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
                left.append(value)
