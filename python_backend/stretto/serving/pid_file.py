"""Pid file of a launcher: its pid, ports and state as JSON."""

import json
import os
import signal
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stretto.serving.processes import birth, read_process

STOP_SECONDS = 60.0  # default for records without a value
STATES = ("starting", "ready", "unready", "waiting", "draining")


def write(
    path: Path | None, state: str, ports: dict[str, int], log: str, reason: str = "", stop_seconds: float = STOP_SECONDS
) -> None:
    """Replace the pid file atomically; do nothing if `path` is None.

    Args:
        path: Path of the file.
        state: One of STATES.
        ports: Port of each protocol.
        log: Path of the log.
        reason: Why the server is not ready; empty if nothing is wrong.
        stop_seconds: Upper bound of the time to stop the launcher.
    """
    assert state in STATES, state
    if path is None:
        return
    record: dict[str, Any] = {
        "pid": os.getpid(),
        "born": birth(os.getpid()),
        "state": state,
        "ports": ports,
        "log": log,
    }
    record |= {"stop_seconds": stop_seconds, "version": version("stretto")}
    if reason:
        record["reason"] = reason
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(record) + "\n")
    scratch.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """Return the record of a running launcher; None without one, and for a damaged file."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return record if _is_record(record) and _is_alive(record) else None


def _is_record(found: Any) -> bool:
    return isinstance(found, dict) and type(found.get("pid")) is int and found.get("state") in STATES


def _is_alive(record: dict[str, Any]) -> bool:
    """Return True if the process that wrote the record is running; its pid may have been reused."""
    return read_process(record["pid"]) is not None and birth(record["pid"]) == record.get("born")


def remove(path: Path | None) -> None:
    """Remove the file if this process wrote it."""
    record = None if path is None else read(path)
    if path is not None and record is not None and record["pid"] == os.getpid():
        path.unlink(missing_ok=True)


def stop(path: Path) -> bool:
    """Send SIGTERM to the launcher and wait until it has drained and exited.

    Returns:
        False if no launcher was running.

    Raises:
        TimeoutError: The launcher takes longer than its record's `stop_seconds`.
    """
    record = read(path)
    if record is None:
        return False
    os.kill(record["pid"], signal.SIGTERM)
    stop_seconds = record.get("stop_seconds", STOP_SECONDS)
    deadline = time.monotonic() + stop_seconds
    while _is_alive(record):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the launcher {record['pid']} has not stopped within {stop_seconds:g} s")
        time.sleep(0.1)
    return True
