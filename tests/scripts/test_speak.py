"""`scripts/speak.sh` with a stand-in for its Python: who starts the server, and who waits for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SPEAK = Path(__file__).parents[2] / "scripts/speak.sh"
# Takes the place of .venv/bin/python: the client, the state of the server, or the launcher, whose server is not ready
# as long as the file `slow` is there.
PYTHON = """#!{python}
import os, pathlib, signal, sys, time
here = pathlib.Path({here!r})
record = here / "record"
if sys.argv[2] == "client":
    print("spoken through", sys.argv[sys.argv.index("--server") + 1])
elif "--status" in sys.argv:
    try:
        pid, state = record.read_text().split()
        os.kill(int(pid), 0)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        sys.exit(3)
    sys.exit(state != "ready")
else:
    time.sleep(0.5)
    with (here / "starts").open("a") as starts:
        starts.write(str(os.getpid()) + "\\n")
    if (here / "fails").exists():
        sys.exit("port 8000 is in use")
    record.write_text(str(os.getpid()) + " starting")
    while (here / "slow").exists():
        time.sleep(0.02)
    record.write_text(str(os.getpid()) + " ready")
    signal.pause()
"""


class Checkout:
    """A folder in which speak.sh finds all that it calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir()
        (folder / ".venv/bin").mkdir(parents=True)
        self._write("scripts/speak.sh", SPEAK.read_text())
        self._write("scripts/setup.sh", "#!/bin/sh\n")
        self._write(".venv/bin/python", PYTHON.format(python=sys.executable, here=str(folder)))

    def _write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text)
        (self.folder / path).chmod(0o755)

    def speak(self) -> subprocess.Popen[str]:
        command = [str(self.folder / "scripts/speak.sh"), "hello"]
        environment = {key: value for key, value in os.environ.items() if key != "STRETTO_PORT"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe, start_new_session=True)

    def until_started(self) -> None:
        deadline = time.monotonic() + 60
        while not self.starts:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def starts(self) -> list[int]:
        path = self.folder / "starts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path)
    yield made
    for pid in [] if (tmp_path / "fails").exists() else made.starts:
        os.kill(pid, signal.SIGKILL)


def test_of_two_calls_at_once_one_starts_the_server_and_the_other_waits_for_it(checkout: Checkout) -> None:
    calls = [checkout.speak(), checkout.speak()]
    said = [call.communicate(timeout=60) for call in calls]
    assert [call.returncode for call in calls] == [0, 0], said
    assert len(checkout.starts) == 1
    assert [output.endswith("spoken through localhost:8001\n") for output, _ in said] == [True, True]


def test_a_call_waits_for_the_server_that_another_one_is_starting(checkout: Checkout) -> None:
    (checkout.folder / "slow").touch()
    first = checkout.speak()
    checkout.until_started()
    second = checkout.speak()
    assert second.stdout.readline() == "another call is starting the server: waiting for it\n"
    (checkout.folder / "slow").unlink()
    assert second.communicate(timeout=60) == ("spoken through localhost:8001\n", "")
    assert "starting the server on ports 8000 (HTTP)" in first.communicate(timeout=60)[0]
    assert len(checkout.starts) == 1


def test_a_server_that_runs_is_used_and_has_not_kept_the_lock(checkout: Checkout) -> None:
    for _ in range(2):
        output, _ = checkout.speak().communicate(timeout=60)
    assert output == "spoken through localhost:8001\n"
    assert len(checkout.starts) == 1


def test_a_server_that_an_interrupted_call_has_left_starting_is_waited_for(checkout: Checkout) -> None:
    (checkout.folder / "slow").touch()
    interrupted = checkout.speak()
    checkout.until_started()
    os.killpg(interrupted.pid, signal.SIGTERM)  # SIGINT is ignored by what runs behind a script
    interrupted.communicate(timeout=60)
    assert interrupted.returncode == -signal.SIGTERM
    (checkout.folder / "slow").unlink()
    output, errors = checkout.speak().communicate(timeout=60)
    assert "spoken through localhost:8001" in output, errors
    assert len(checkout.starts) == 1


def test_a_server_that_does_not_start_is_an_error_that_says_why(checkout: Checkout) -> None:
    (checkout.folder / "fails").touch()
    call = checkout.speak()
    _, errors = call.communicate(timeout=60)
    assert call.returncode == 1
    assert errors == "the server did not start:\nport 8000 is in use\n"
    assert len(checkout.starts) == 1
