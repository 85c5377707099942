"""The search for thin margins: which comparisons it names, and a whole run."""

import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import margins

KEY = ("test_a.py::test_it", "a.py:1")


@pytest.mark.parametrize(
    ("made", "is_thin"),
    [
        ([[0.01, 0.02], [0.02, 0.01]], False),
        ([[0.01, 0.12], [0.02, 0.01]], True),  # one number moves by 0.11
        ([[0.1, -0.1], [-0.1, 0.1]], True),  # the largest ratio stays, but each number moves by 0.2
        ([[0.95, 0.0], [0.95, 0.0]], False),  # nothing moves
        ([[0.5], [0.502]], False),  # a measured error alone: it moves by less than a hundredth of itself
        ([[0.5], [0.51]], True),  # more: the numbers behind it may move by as much as it is
    ],
)
def test_thin_comparisons_are_those_that_nearly_move_to_their_tolerance(made: list[list[float]], is_thin: bool) -> None:
    lines = margins.thin([{KEY: [np.array(each)]} for each in made])
    assert bool(lines) == is_thin
    assert all(line.startswith("test_a.py::test_it: a.py:1: margin ") for line in lines)


def test_run_that_is_aborted_is_not_taken_for_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = iter((0.01, 0.5, None))

    def run(command: list[str], env: dict[str, str]) -> Any:
        if (ratio := next(made)) is None:
            return subprocess.CompletedProcess(command, -6)
        Path(env[margins.FILE]).write_bytes(pickle.dumps({KEY: [np.array([ratio])]}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(margins.subprocess, "run", run)
    assert margins.main([]) == 1
    *_, thin, failed = capsys.readouterr().out.splitlines()
    assert thin.endswith("ratios 0.01 0.5")
    assert failed == "margins: tests fail with SSE"


@pytest.mark.nightly
def test_whole_run_names_a_thin_test_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_made.py").write_text(
        "import os\nimport numpy as np\n"
        "MOVED = 'AVX2' in os.environ.get('ONEDNN_MAX_CPU_ISA', '')\n"
        "def test_thin():\n    np.testing.assert_allclose(1.0 + 0.5 * MOVED, 1.0, atol=1.0)\n"
        "def test_thick():\n    np.testing.assert_allclose(1.0 + 0.001 * MOVED, 1.0, atol=1.0)\n"
    )
    assert margins.main(["-q", f"--rootdir={tmp_path}", str(tmp_path / "test_made.py")]) == 1
    thin = [line for line in capfd.readouterr().out.splitlines() if ": margin " in line]
    assert len(thin) == 1
    assert "test_made.py::test_thin" in thin[0]
