"""The gate that the launcher closes."""

from pathlib import Path

import pytest

from stretto.errors import Overloaded
from stretto.serving.environment import DRAIN_FILE
from stretto.triton_io.draining import VARIABLE, DrainGate, is_passing


def test_the_gate_is_closed_while_the_file_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "draining"))
    gate = DrainGate.from_environment()
    with gate.admit():
        pass
    (tmp_path / "draining").touch()
    with pytest.raises(Overloaded, match="server is draining"), gate.admit():
        pytest.fail("let through")


def test_a_request_on_its_way_through_is_seen_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "draining"
    assert not is_passing(path)
    gate = DrainGate(path)
    assert not is_passing(path)
    with gate.admit():
        assert is_passing(path)
    assert not is_passing(path)
    with pytest.raises(ValueError, match="bad"), gate.admit():
        raise ValueError("bad")
    assert not is_passing(path)


def test_requests_of_several_threads_pass_until_the_last_is_out(tmp_path: Path) -> None:
    path = tmp_path / "draining"
    gate = DrainGate(path)
    gate.enter()
    gate.enter()
    gate.leave()
    assert is_passing(path)
    gate.leave()
    assert not is_passing(path)


def test_without_a_launcher_the_gate_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with DrainGate.from_environment().admit():
        pass


def test_the_launcher_sets_the_variable_that_the_gate_reads() -> None:
    assert DRAIN_FILE == VARIABLE
