"""Time until the server works again after one of its processes is killed or stopped.

    python -m benchmarks.recovery --pid-file PATH       # kill each process in turn; also stop the decoder
    python -m benchmarks.recovery --pid-file PATH --processes engine --rounds 5

The server must be running on this host, started by `stretto serve` and by this user, without other clients.
"""

import asyncio
import io
import os
import signal
import time
import urllib.request
import wave
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import append_result, command_line
from stretto.launcher import background
from stretto_client import SpeechClient
from stretto_client.errors import ClientError

STUBS = ("preprocessor", "language_model", "acoustic_decoder")
AUDIO = "audio worker"  # of the preprocessor
PROCESSES = ("tritonserver", *STUBS, "engine", "proxy", AUDIO)
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
POLL_S, MAX_S = 0.02, 600.0
NOTICE_S = 3.0  # if readiness has not dropped by then, the fault goes unnoticed


def find(name: str, launcher: psutil.Process) -> psutil.Process:
    """Return the launcher's process of that name; LookupError if there is none."""
    for process in launcher.children(recursive=True):
        with suppress(psutil.Error):
            command = process.cmdline()
            if is_named(name, command, process.name()):
                return process
    raise LookupError(f"the launcher with pid {launcher.pid} has no process {name!r}")


def is_named(name: str, command: list[str], executable: str) -> bool:
    """Return True if a process with that command is the one called `name` here."""
    is_stub = executable.startswith("triton_python_b")
    match name:
        case "tritonserver":
            return executable == name
        case "engine":
            return bool(command) and command[0].startswith("VLLM::EngineCore")
        case "proxy":
            return "stretto.proxy" in command
        case "audio worker":
            return "stretto.preprocessing.audio_worker" in command
    return is_stub and any(f"/{name}/" in word for word in command)


def is_ready(port: int) -> bool:
    """Return True if the server's HTTP port reports readiness."""
    with suppress(OSError), urllib.request.urlopen(f"http://localhost:{port}/v2/health/ready", timeout=2) as answer:
        return answer.status == 200
    return False


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
    ports, launcher = record["ports"], psutil.Process(record["pid"])
    begun = time.perf_counter()
    os.kill(find(name, launcher).pid, SIGNALS[how])
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
