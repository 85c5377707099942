"""Deferred modules are imported when an object of theirs is used, and behave like imported ones."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from stretto.engine.host import DEFERRED
from stretto.machine.deferred_imports import deferred

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


@pytest.mark.parametrize("name", DEFERRED)
def test_deferred_modules_of_the_engine_exist(name: str) -> None:
    package = find_spec(name.partition(".")[0])
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]).joinpath(*name.split(".")[1:])
    assert path.with_suffix(".py").is_file()
