"""Forked workers run each test once, report all that happens, and survive a test that ends its process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import os, pathlib, warnings
import pytest

PIDS = pathlib.Path(__file__).with_suffix(".pids")
pytestmark = pytest.mark.together(__name__)

def test_first():
    PIDS.write_text(str(os.getpid()))

def test_second(capfd):
    assert PIDS.read_text() == str(os.getpid())
    print("said")
    assert capfd.readouterr().out == "said\\n"
    warnings.warn("warned", stacklevel=1)
"""
ENDS = """
def test_ends_its_process():
    os._exit(0)

def test_after_it():
    print("told")
    assert PIDS.read_text() == str(os.getpid()), "other process"
"""


@pytest.mark.slow
def test_workers_run_every_test_and_report_it(tmp_path: Path) -> None:
    for name, text in {"one": TESTS, "two": TESTS + ENDS, "three": TESTS}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.workers", "--workers", "2", "--rootdir", tmp_path, tmp_path]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert "2 failed, 6 passed, 3 warnings" in said
    assert "UserWarning: warned" in said
    assert "the worker ended during test_two.py::test_ends_its_process" in said
    assert "AssertionError: other process" in said
    assert "told" in said
