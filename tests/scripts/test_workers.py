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


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["os._exit(7)", "sys.exit(0)", "os.kill(os.getpid(), 11)"])
def test_run_is_not_green_if_a_worker_ends_with_its_last_fixture(tmp_path: Path, ending: str) -> None:
    fixture = f"""
import os, sys
import pytest

@pytest.fixture(scope="session", autouse=True)
def ends():
    yield
    {ending}

def test_it():
    pass
"""
    (tmp_path / "test_one.py").write_text(fixture)
    assert ended(tmp_path, "1").returncode == 3


@pytest.mark.slow
def test_process_that_a_test_leaves_behind_does_not_hold_the_run(tmp_path: Path) -> None:
    left = """
import os, threading, time

def fork():
    if os.fork() == 0:
        time.sleep(600)

def test_it():
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
"""
    (tmp_path / "test_one.py").write_text(left)
    assert ended(tmp_path, "1").returncode == 0


@pytest.mark.slow
def test_run_without_workers_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_it(): pass")
    assert ended(tmp_path, "-1").returncode == 3


def ended(folder: Path, num_workers: str) -> subprocess.CompletedProcess[str]:
    """Return the result of a run of the tests in a folder."""
    words = ("-p", "tests.workers", "--workers", num_workers, "--rootdir", folder, folder)
    return subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
