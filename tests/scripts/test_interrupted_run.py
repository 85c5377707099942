"""An interrupted or killed run of the tests leaves no process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stretto.launcher.processes import read_process
from tests.patience import until
from tests.tiers import by_night

ROOT = Path(__file__).parents[2]
STARTS = """
import multiprocessing, os, pathlib, signal, subprocess, sys, time

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
DEAF = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"]

def engine(pipe):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send(subprocess.Popen(SLEEP, start_new_session=True).pid)
    time.sleep(600)

def test_that_hangs():
    ours, theirs = multiprocessing.Pipe()
    forked = multiprocessing.get_context("fork").Process(target=engine, args=(theirs,))
    forked.start()
    server = subprocess.Popen(DEAF, start_new_session=True)
    pids = [os.getpid(), forked.pid, server.pid, ours.recv()]
    with open(os.environ["PIDS"], "w") as pipe:
        print(*pids, file=pipe)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGINT, "1"), *by_night((signal.SIGTERM, "1")), (signal.SIGKILL, "0")],
)
def test_interrupted_test_run_leaves_no_processes(tmp_path: Path, number: signal.Signals, workers: str) -> None:
    (tmp_path / "test_starts.py").write_text(STARTS)
    named = tmp_path / "pids"
    os.mkfifo(named)
    plugins = ["-p", "tests.ending", "-p", "tests.workers"]
    command = [sys.executable, "-m", "pytest", *plugins, "--workers", workers, "--rootdir", tmp_path, tmp_path]
    environment = os.environ | {"PIDS": str(named), "PYTHONPATH": str(ROOT), "STRETTO_TEST_GRACE_S": "0.5"}
    output = subprocess.PIPE  # ends when the last process has: the guard and all that hold it
    with subprocess.Popen(command, env=environment, stdout=output, stderr=output) as run:
        pids = [int(pid) for pid in named.read_text().split()]
        assert all(read_process(pid) is not None for pid in pids)
        run.send_signal(number)
        run.communicate()
    until(lambda: not any(map(read_process, pids)))  # a process that ends closes its output first
