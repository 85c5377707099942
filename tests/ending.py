"""End every process that a test run has started, however the run ends.

A guard in its own process group waits until the run is over: a pipe closes when the run ends or is killed. Every
process that a run executes inherits `run_guard.RUN` in its environment; every process that it forks dies with it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import suppress

import pytest

from tests import run_guard

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
GUARD = pytest.StashKey[subprocess.Popen[bytes]]()
PIPE = pytest.StashKey[int]()  # stays open as long as the run lasts


def pytest_configure(config: pytest.Config) -> None:
    """Start the guard, and make an xdist worker die with its controller."""
    if hasattr(config, "workerinput"):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # its title hides its environment from the guard
    else:
        run = uuid.uuid4().hex
        closes, config.stash[PIPE] = os.pipe()
        command = [sys.executable, "-S", "-E", run_guard.__file__, run]
        config.stash[GUARD] = subprocess.Popen(command, stdin=closes, process_group=0)
        os.close(closes)
        os.environ[run_guard.RUN] = f"{os.environ.get(run_guard.RUN, '')} {run}"  # a run within a run belongs to both
    _bind_forks(config.stash.get(PIPE, None))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Wait until the guard has ended all processes that the tests have left."""
    if GUARD in config.stash:
        os.close(config.stash[PIPE])
        config.stash[GUARD].wait()


def _bind_forks(pipe: int | None) -> None:
    """Make forked processes die with this one, and close the guard's pipe in them."""
    is_main = False

    def look() -> None:
        nonlocal is_main
        is_main = threading.current_thread() is threading.main_thread()

    def bind() -> None:
        # The kernel sends the signal when the *thread* that forked ends: only the main one lasts as long as the run.
        if is_main:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if pipe is not None:
            with suppress(OSError):  # a child's child
                os.close(pipe)

    os.register_at_fork(before=look, after_in_child=bind)
