"""Script that ends the processes of a test run once its pipe closes; tests/ending.py starts it."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

RUN = "STRETTO_TEST_RUN"  # environment variable: the ids of the runs that a process belongs to
# Seconds in which a launcher stops its server in order. Whatever is left is killed.
GRACE_S = float(os.environ.get("STRETTO_TEST_GRACE_S", "20"))


def members(run: str) -> list[int]:
    """Return the pids of the run's processes that have not ended."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid = int(folder.name)
            environment = (folder / "environ").read_bytes().split(b"\0")  # empty for an ended process
            if any(each.startswith(f"{RUN}=".encode()) and run.encode() in each for each in environment):
                found.append(pid)
    return found


def end(run: str) -> None:
    """End the run's processes: send SIGTERM once, and SIGKILL after GRACE_S."""
    asked, deadline = set[int](), time.monotonic() + GRACE_S
    while left := members(run):
        is_late = time.monotonic() > deadline
        for pid in left:
            with suppress(ProcessLookupError):
                if is_late:
                    os.kill(pid, signal.SIGKILL)
                elif pid not in asked:
                    asked.add(pid)
                    os.kill(pid, signal.SIGTERM)
        time.sleep(0.02)


if __name__ == "__main__":
    sys.stdin.read()
    end(sys.argv[1])
