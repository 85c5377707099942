"""The gate that the launcher closes."""

from pathlib import Path

import pytest

from python_backend.errors import Overloaded
from python_backend.triton_io.draining import VARIABLE, DrainGate
from scripts.serving.environment import DRAIN_FILE


def test_the_gate_is_closed_while_the_file_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "draining"))
    gate = DrainGate.from_environment()
    gate.check()
    (tmp_path / "draining").touch()
    with pytest.raises(Overloaded, match="server is draining"):
        gate.check()


def test_without_a_launcher_the_gate_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    DrainGate.from_environment().check()


def test_the_launcher_sets_the_variable_that_the_gate_reads() -> None:
    assert DRAIN_FILE == VARIABLE
