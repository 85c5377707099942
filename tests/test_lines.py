"""Rules of lines: no packed assignments, no nested conditional expressions, and no further vague names."""

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.sources import parsed, walk

pytestmark = pytest.mark.together("sources")  # one process parses them
ROOT = Path(__file__).parents[1]
FOLDERS = ("python_backend", "gateway", "contract", "client", "model_repository", "deploy", "scripts", "plugins")
VAGUE = frozenset("each found given here kind known made more own part place rest".split())
# Numbers of assignments to names in VAGUE, and of functions with a tuple for that purpose alone. They may only fall.
MOST_VAGUE = 20
MOST_SPLATTED = 68


@cache
def sources() -> list[Path]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in paths if not {"lab", "tests"} & {*path.relative_to(ROOT).parts}]


def is_packed(node: ast.AST) -> bool:
    """Return True if the node assigns a tuple to a tuple, and no value reads a target, as in a swap."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    target = node.targets[0]
    if not isinstance(target, ast.Tuple) or any(isinstance(value, ast.Starred) for value in node.value.elts):
        return False
    read = {ast.unparse(child) for child in walk(node.value) if isinstance(child, ast.expr)}
    return not read & {ast.unparse(element) for element in target.elts}


def is_nested_conditional(node: ast.AST) -> bool:
    return isinstance(node, ast.IfExp) and any(
        isinstance(branch, ast.IfExp) for branch in (node.test, node.body, node.orelse)
    )


def is_splatted_tuple(node: ast.AST) -> bool:
    """Return True for a function that stores a tuple under a name only to pass its elements to calls."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    inner = list(walk(node))
    stored = {
        child.targets[0].id
        for child in inner
        if isinstance(child, ast.Assign)
        and isinstance(child.targets[0], ast.Name)
        and isinstance(child.value, ast.Tuple)
        and len(child.value.elts) > 1
    }
    splatted = {
        child.value.id for child in inner if isinstance(child, ast.Starred) and isinstance(child.value, ast.Name)
    }
    return bool(stored & splatted)


def is_vague(node: ast.AST) -> bool:
    """Return True if the node assigns to a vague name, with or without a leading underscore."""
    if isinstance(node, ast.arg):
        return node.arg in VAGUE
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.lstrip("_") in VAGUE and isinstance(node.ctx, ast.Store)


@pytest.mark.parametrize(
    ("source", "is_fault", "expected"),
    [
        ("a, b = 1, 2", is_packed, True),
        ("self.a, self.b = x, y", is_packed, True),
        ("a, b = b, a", is_packed, False),
        ("self.a, b = b, self.a", is_packed, False),
        ("a, b = f()", is_packed, False),
        ("(a, b), c = x, y", is_packed, True),
        ("a = 1 if x else 2 if y else 3", is_nested_conditional, True),
        ("a = 1 if x else f(2 if y else 3)", is_nested_conditional, False),
        ("def f(): a = (1, 2); g(*a)", is_splatted_tuple, True),
        ("def f(): a = h(); g(*a)", is_splatted_tuple, False),
        ("found = 1", is_vague, True),
        ("self._place = 1", is_vague, True),
        ("def f(kind): pass", is_vague, True),
        ("print(found)", is_vague, False),
    ],
)
def test_rules_find_their_faults(source: str, is_fault: Callable[[ast.AST], bool], expected: bool) -> None:
    assert any(map(is_fault, walk(ast.parse(source)))) == expected


RULES = (is_packed, is_nested_conditional, is_vague, is_splatted_tuple)
# Nodes at which a rule may find a fault: a fifth of all.
CHECKED = frozenset({ast.Assign, ast.IfExp, ast.arg, ast.Name, ast.Attribute, ast.FunctionDef, ast.AsyncFunctionDef})


@cache
def faults() -> dict[Callable[[ast.AST], bool], list[str]]:
    """Return file and line of each fault, by the rule that finds it; all rules see a node before the next one."""
    lines: dict[Callable[[ast.AST], bool], list[str]] = {is_fault: [] for is_fault in RULES}
    for path in sources():
        for node in (node for node in walk(parsed(path)) if type(node) in CHECKED):
            for is_fault in RULES:
                if is_fault(node):
                    lines[is_fault].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return lines


@pytest.mark.parametrize("is_fault", [is_packed, is_nested_conditional])
def test_lines_say_one_thing(is_fault: Callable[[ast.AST], bool]) -> None:
    assert not faults()[is_fault], "\n".join(faults()[is_fault])


@pytest.mark.parametrize(("is_fault", "most"), [(is_vague, MOST_VAGUE), (is_splatted_tuple, MOST_SPLATTED)])
def test_other_faults_do_not_become_more(is_fault: Callable[[ast.AST], bool], most: int) -> None:
    assert len(faults()[is_fault]) <= most
