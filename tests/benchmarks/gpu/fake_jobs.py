"""Fake jobs that pass, find an error, fail, crash, hang, or make an illegal memory access."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.jobs import Setup


def passes(setup: Setup) -> Iterator[dict[str, Any]]:
    yield {"figure": 1, "is_small": setup.is_small}
    yield {"figure": 2, "ok": True}


def fails(setup: Setup) -> Iterator[dict[str, Any]]:
    yield {"figure": 3}
    raise ArithmeticError("out of luck")


def finds(setup: Setup) -> Iterator[dict[str, Any]]:
    yield {"figure": 4, "ok": False}
    yield {"figure": 5, "ok": True}


def crashes(setup: Setup) -> Iterator[dict[str, Any]]:
    yield {"figure": 6}
    print("about to read nothing")
    ctypes.string_at(0)


def meets(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    """End only once the jobs `a` and `b` have both begun."""
    print(f"{name} is here", flush=True)
    (setup.out / name).touch()
    while not all((setup.out / each).exists() for each in "ab"):
        time.sleep(0.01)
    print(f"{name} has met all", flush=True)
    yield {"ok": True}


def hangs(setup: Setup) -> Iterator[dict[str, Any]]:
    child = subprocess.Popen(["sleep", "600"])
    yield {"child": child.pid}
    time.sleep(600)


def strays(setup: Setup, where: str) -> Iterator[dict[str, Any]]:
    """Make an illegal access, which, as with CUDA, fails a later call or ends the process."""
    yield {"blocking": os.environ.get("CUDA_LAUNCH_BLOCKING")}
    if where == "error":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    os.write(2, b"terminate called: CUDA error: an illegal memory access was encountered\n")
    os.abort()


def reads(setup: Setup) -> Iterator[dict[str, Any]]:
    yield {"read": os.environ["READ_IN_AN_IMPORT"], "is_fresh": "pytest" not in sys.modules, "device": setup.device}
