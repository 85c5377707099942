"""Fake jobs that pass, find an error, fail, crash, hang, or make an illegal memory access."""

import ctypes
import subprocess
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


def hangs(setup: Setup) -> Iterator[dict[str, Any]]:
    child = subprocess.Popen(["sleep", "600"])
    yield {"child": child.pid}
    time.sleep(600)
