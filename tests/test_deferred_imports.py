"""Deferred modules are imported when an object of theirs is used, and behave like imported ones."""

import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stretto.machine.deferred_imports import deferred, deferred_decorators, hidden

LARGE = """
class Tool:
    name = "hammer"

    def __init__(self, weight: int) -> None:
        self.weight = weight
"""
USER = """
from large_package.large import Tool


def weigh(tool: Tool | None, other: "None | Tool" = None) -> int:
    return tool.weight if isinstance(tool, Tool) else 0


def make() -> Tool:
    return Tool(3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a large module, and a module that imports it."""
    (tmp_path / "large_package").mkdir()
    (tmp_path / "large_package" / "__init__.py").touch()
    (tmp_path / "large_package" / "large.py").write_text(LARGE)
    (tmp_path / "its_user.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("large_package.large", "large_package", "its_user"):
        sys.modules.pop(name, None)


def test_module_is_imported_at_the_first_use(folder: Path) -> None:
    with deferred(["large_package.large"]):
        import its_user
    assert "large_package" not in sys.modules
    assert its_user.weigh("no tool") == 0
    assert "large_package.large" not in sys.modules
    tool = its_user.make()
    assert (type(tool).__module__, its_user.Tool.name) == ("large_package.large", "hammer")
    assert its_user.weigh(tool) == 3
    assert issubclass(type(tool), its_user.Tool)


def test_deferred_class_has_subclasses(folder: Path) -> None:
    with deferred(["large_package.large"]):
        import its_user

    class Axe(its_user.Tool):
        pass

    assert its_user.weigh(Axe(5)) == 5


def test_imported_module_is_not_deferred(folder: Path) -> None:
    import large_package.large as imported

    with deferred(["large_package.large"]):
        import its_user
    assert its_user.Tool is imported.Tool
    assert sys.modules["large_package.large"] is imported


def test_missing_name_is_reported_when_it_is_used(folder: Path) -> None:
    with deferred(["large_package.large"]):
        from large_package.large import Saw
    with pytest.raises(AttributeError, match="Saw"):
        Saw()


def test_deferred_module_itself_becomes_the_real_one(folder: Path) -> None:
    with deferred(["large_package.large"]):
        import large_package.large as module
    assert isinstance(module.Tool, type)
    assert module.Tool is sys.modules["large_package.large"].Tool
    with pytest.raises(AttributeError, match="Saw"):
        _ = module.Saw


def test_hidden_module_seems_not_to_be_installed(folder: Path) -> None:
    with hidden("large_package"), pytest.raises(ImportError, match="large_package"):
        import_module("large_package.large")
    assert import_module("large_package.large").Tool.name == "hammer"
    with pytest.raises(RuntimeError, match="large_package was imported"), hidden("large_package"):
        pass


def test_deferred_decorator_is_applied_at_the_first_call() -> None:
    applied: list[str] = []
    owner = ModuleType("owner")

    def mark(function: Any = None, sign: str = "+") -> Any:
        if function is None:
            return partial(mark, sign=sign)
        applied.append(f"{function.__name__}{sign}")
        return lambda number: -function(number)

    owner.mark = mark
    with deferred_decorators(owner, ["mark"], lambda: applied.append("prepared")):

        @owner.mark
        def one(number: int) -> int:
            return number + 1

        @owner.mark(sign="*")
        def two(number: int) -> int:
            return number + 2

    assert owner.mark is mark
    assert (one.__name__, applied) == ("one", [])
    assert [one(1), one(2), two(1)] == [-2, -3, -3]
    assert applied == ["prepared", "one+", "prepared", "two*"]


def test_other_objects_are_decorated_at_once() -> None:
    owner = ModuleType("owner")
    owner.mark = len
    with deferred_decorators(owner, ["mark"]):
        assert owner.mark([1, 2]) == 2
