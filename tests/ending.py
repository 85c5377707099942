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

import pytest

from tests import run_guard

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
GUARD = pytest.StashKey[subprocess.Popen[bytes]]()
PIPE = pytest.StashKey[int]()  # stays open as long as the run lasts


def pytest_configure(config: pytest.Config) -> None:
    """Start the guard, and make forked processes die with this one."""
    run = uuid.uuid4().hex
    closes, config.stash[PIPE] = os.pipe()
    command = [sys.executable, "-S", "-E", run_guard.__file__, run]
    config.stash[GUARD] = subprocess.Popen(command, stdin=closes, process_group=0)
    os.close(closes)
    os.environ[run_guard.RUN] = f"{os.environ.get(run_guard.RUN, '')} {run}"  # a run within a run belongs to both
    _bind_forks(config.stash[PIPE])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Wait until the guard has ended all processes that the tests have left."""
    os.close(config.stash[PIPE])
    config.stash[GUARD].wait()


def _bind_forks(guarded: int) -> None:
    """Make forked processes die with this one, and close the guard's pipe in them."""
    is_main = False
    pipe: int | None = guarded

    def look() -> None:
        nonlocal is_main
        is_main = threading.current_thread() is threading.main_thread()

    def bind() -> None:
        nonlocal pipe
        # The kernel sends the signal when the *thread* that forked ends: only the main one lasts as long as the run.
        if is_main:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if pipe is not None:
            os.close(pipe)
            pipe = None  # a child of this child may have another file with this number

    os.register_at_fork(before=look, after_in_child=bind)
