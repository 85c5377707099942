"""Workarounds for faults of Triton: which servers need them, and what is imported for the others."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stretto.launcher import server_search, triton_24_10, workarounds
from stretto.launcher.server_search import find_installation, server_version
from stretto.launcher.workarounds import FAULTS, UNPROVED, ServerFault, Version, Workarounds

PACKAGE = triton_24_10.__name__
NEWEST: Version = (2, 75)
FIXED: Version = (2, 80)


@pytest.fixture
def imported() -> Iterator[set[str]]:
    """Forget the modules with workarounds; the set has those that were imported since, once `seen` was called."""
    known = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(f"{PACKAGE}.")}
    yield set()
    for name in list(sys.modules):
        if name.startswith(f"{PACKAGE}."):
            del sys.modules[name]
    sys.modules |= known


def seen() -> set[str]:
    return {name.rpartition(".")[2] for name in sys.modules if name.startswith(f"{PACKAGE}.")}


def use_all(version: Version | None, folder: Path) -> None:
    """Use every workaround, as a launcher with a server of this version does."""
    needed = Workarounds(version)
    assert [watch.fault() for watch in needed.watches(1)] == [None] * len(needed.watches(1))
    watch = needed.start_watch(1)
    assert watch is None or watch.hang() == ""
    needed.free_locks([folder / "no region"])


def test_fixed_server_imports_no_workaround(
    imported: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If all faults had been fixed in a release, a server of that release would need none of the modules."""
    for name, fault in vars(workarounds).copy().items():
        if isinstance(fault, ServerFault):
            monkeypatch.setattr(workarounds, name, replace(fault, fixed=FIXED))
    use_all(FIXED, tmp_path)
    assert seen() == set()
    use_all((FIXED[0], FIXED[1] - 1), tmp_path)
    assert seen() == {fault.module for fault in FAULTS}


@pytest.mark.parametrize("version", [None, (2, 51), NEWEST], ids=["unknown", "wheel", "newest"])
def test_unproved_faults_are_worked_around_with_every_server(
    imported: set[str], tmp_path: Path, version: Version | None
) -> None:
    use_all(version, tmp_path)
    assert seen() == {"dead_locks", "crash", "clock", "start"}


@pytest.mark.parametrize("fixed", [None, FIXED])
def test_each_fault_is_worked_around_by_its_module_alone(
    imported: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fixed: Version | None
) -> None:
    for name, fault in [each for each in vars(workarounds).copy().items() if isinstance(each[1], ServerFault)]:
        with monkeypatch.context() as patch:
            for other in FAULTS:
                key = next(key for key, value in vars(workarounds).items() if value is other)
                patch.setattr(workarounds, key, replace(other, fixed=fixed if other is fault else (0, 0)))
            use_all(NEWEST, tmp_path)
        assert seen() == {fault.module}, name
        del sys.modules[f"{PACKAGE}.{fault.module}"]


def test_table_has_a_source_and_an_existing_module_for_each_fault() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert (fault.fixed is None) == fault.source.startswith("unproved"), fault.name
        assert importlib.import_module(f"{PACKAGE}.{fault.module}").__doc__
        assert f"`{fault.module}`:" in (triton_24_10.__doc__ or "")
    assert UNPROVED.startswith("unproved")
    modules = {path.stem for path in Path(triton_24_10.__path__[0]).glob("*.py")} - {"__init__"}
    assert modules == {fault.module for fault in FAULTS} | {"wheel"}


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.51.0\n", (2, 51)), ("2.73.0dev\n", (2, 73)), ("unknown", None), ("", None), (None, None)],
)
def test_version_is_read_from_the_installation(tmp_path: Path, text: str | None, version: Version | None) -> None:
    if text is not None:
        (tmp_path / "TRITON_VERSION").write_text(text)
    assert server_version(tmp_path / "bin" / "tritonserver") == version


def test_container_imports_nothing_for_the_wheel(
    imported: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executable = tmp_path / "bin" / "tritonserver"
    executable.parent.mkdir()
    executable.write_text("#!/bin/sh\necho --help\n")
    executable.chmod(0o755)
    (tmp_path / "TRITON_VERSION").write_text("2.75.0\n")
    monkeypatch.setattr(server_search, "CONTAINER_SERVER", executable)
    found = find_installation(tmp_path / "cache")
    assert (found.executable, found.version) == (executable, NEWEST)
    assert seen() == set()


def test_start_watch_reads_the_processes_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher asks ten times a second, and a walk through /proc takes milliseconds."""
    from stretto.launcher.triton_24_10 import start

    walks: list[int] = []
    now_s = 100.0
    monkeypatch.setattr(start, "waits_for_a_child", lambda pid: False)
    monkeypatch.setattr(start, "lost_children", lambda pid: set(walks.append(pid) or ()))
    monkeypatch.setattr(start.time, "monotonic", lambda: now_s)
    watch = start.StartWatch(1)
    walks.clear()
    for poll in range(30):
        now_s = 100.0 + poll / 10
        assert watch.hang() == ""
    assert len(walks) == 3


def test_start_watch_reports_a_stub_that_stays_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from stretto.launcher.triton_24_10 import start

    now_s = 100.0
    lost: set[int] = set()
    monkeypatch.setattr(start, "waits_for_a_child", lambda pid: False)
    monkeypatch.setattr(start, "lost_children", lambda pid: lost)
    monkeypatch.setattr(start, "slowness", lambda: 1.0)
    monkeypatch.setattr(start.time, "monotonic", lambda: now_s)
    watch = start.StartWatch(1)
    lost = {7}
    assert watch.hang() == ""
    now_s += start.STUCK_S + start.POLL_S
    assert watch.hang() == "not noticed the end of a stub for 20 s"
