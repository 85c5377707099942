"""The gate that the launcher closes."""

from pathlib import Path

import pytest

from stretto.errors import Closing
from stretto.triton_io.stub import DRAIN_FILE, DrainGate, is_passing


def test_gate_is_closed_while_the_file_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DRAIN_FILE, str(tmp_path / "draining"))
    gate = DrainGate.from_environment()
    gate.enter()
    gate.release()
    (tmp_path / "draining").touch()
    with pytest.raises(Closing, match="server is draining"):
        gate.enter()


def test_requests_in_progress_are_visible_to_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "draining"
    assert not is_passing(path)
    gate = DrainGate(path)
    assert not is_passing(path)
    gate.enter()
    assert is_passing(path)
    gate.release()
    assert not is_passing(path)
    path.touch()
    with pytest.raises(Closing):
        gate.enter()
    assert not is_passing(path), "who is refused is not on the way"


def test_gate_is_open_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DRAIN_FILE, raising=False)
    DrainGate.from_environment().enter()
