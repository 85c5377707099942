"""Time until the server works again after one of its processes is killed or stopped.

    python -m benchmarks.recovery --pid-file PATH       # kill each process in turn; also stop the decoder
    python -m benchmarks.recovery --pid-file PATH --processes engine --rounds 5

The server must run on this host, started with `stretto serve` by this user, and must have no other clients.
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
    """Return the seconds from `begun` until the condition holds; None if it does not within `max_s`."""
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
    """Return True if a short text is spoken completely, or for the audio worker if a recording is answered."""

    async def ask() -> bool:
        async with SpeechClient(f"localhost:{port}") as client:
            events = client.transcribe(recording()) if name == AUDIO else client.speak("hello")
            return [event async for event in events][-1].is_final

    with suppress(ClientError):
        return asyncio.run(ask())
    return False


def measure(name: str, how: str, record: dict[str, Any]) -> dict[str, Any]:
    """Kill or stop a process; return the seconds until readiness dropped, returned, and until a request succeeded."""
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
    """Measure and write one line for each signal."""
    flags = command_line(
        __doc__,
        "recovery",
        rounds=(1, "times that each process is killed"),
        settle_s=(61.0, "pause between two; after a minute the launcher no longer counts them as repeated"),
    )
    flags.add_argument("--pid-file", type=Path, required=True, help="file of the launcher")
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
