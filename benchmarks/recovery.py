"""Measure how long the server takes to work again after one of its processes is killed or stopped.

    python -m benchmarks.recovery --pid-file PATH       # kill each process in turn; also stop the decoder
    python -m benchmarks.recovery --pid-file PATH --processes engine --rounds 5

The server must run on this host, must have been started with `stretto serve` by this user, and must have no other
clients.
"""

import asyncio
import io
import os
import signal
import time
import wave
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.harness import append_result, command_line, is_ready, served_processes
from stretto.launcher import background
from stretto_client import SpeechClient
from stretto_client.errors import ClientError

STUBS = ("preprocessor", "language_model", "acoustic_decoder")
AUDIO = "audio_worker"  # decodes files for the preprocessor
PROCESSES = ("tritonserver", *STUBS, "engine", "engine_host", "engine_spare", "proxy", AUDIO)
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
POLL_S, MAX_S = 0.02, 600.0
NOTICE_S = 3.0  # if readiness has not dropped by then, the fault counts as unnoticed


def seconds_until(condition: Callable[[], bool], begun: float, max_s: float = MAX_S) -> float | None:
    """Return the seconds from `begun` until the condition holds, or None after `max_s`."""
    while not condition():
        if time.perf_counter() - begun > max_s:
            return None
        time.sleep(POLL_S)
    return round(time.perf_counter() - begun, 2)


def recording() -> bytes:
    """Return a second of silence as a wav file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, 16_000, 0, "NONE", ""))
        audio.writeframes(bytes(32_000))
    return file.getvalue()


def answers(port: int, name: str) -> bool:
    """Return True if the server speaks a short text completely or, for the audio worker, answers a recording."""

    async def ask() -> bool:
        async with SpeechClient(f"localhost:{port}") as client:
            events = client.transcribe(recording()) if name == AUDIO else client.speak("hello")
            return [event async for event in events][-1].is_final

    with suppress(ClientError):
        return asyncio.run(ask())
    return False


def measure(name: str, how: str, record: dict[str, Any]) -> dict[str, Any]:
    """Kill or stop a process and return the record.

    The record has the seconds until readiness drops, until it returns, and until a request succeeds.
    """
    ports, processes = record["ports"], served_processes(record["pid"])
    if name not in processes:
        raise LookupError(f"the launcher with pid {record['pid']} has no process {name!r}")
    begun = time.perf_counter()
    os.kill(processes[name], SIGNALS[how])
    unready_s = seconds_until(lambda: not is_ready(ports["http"]), begun, NOTICE_S)
    found: dict[str, Any] = {"process": name, "how": how, "unready_s": unready_s}
    found["ready_s"] = seconds_until(lambda: is_ready(ports["http"]), begun)
    found["right_s"] = seconds_until(lambda: answers(ports["grpc"], name), begun)
    return found


def main() -> None:
    """Write a line of measurements for each signal sent to a process."""
    flags = command_line(
        __doc__,
        "recovery",
        rounds=(1, "how often each process is killed"),
        settle_s=(61.0, "seconds between two faults; after a minute, the launcher no longer counts them as repeated"),
    )
    flags.add_argument("--pid-file", type=Path, required=True, help="PID file of the launcher")
    flags.add_argument("--processes", nargs="+", choices=PROCESSES, default=PROCESSES)
    given = flags.parse_args()
    turns = [(name, "killed") for name in given.processes]
    turns += [(name, "stopped") for name in given.processes if name == "acoustic_decoder"]
    for name, how in turns * given.rounds:
        record = background.read(given.pid_file)
        if record is None:
            raise SystemExit(f"{given.pid_file}: no launcher runs")
        append_result(given.out, "recovery", measure(name, how, record))
        time.sleep(given.settle_s)


if __name__ == "__main__":
    main()
