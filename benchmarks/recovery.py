"""How soon the server is right again after one of its processes is killed or stopped.

    python -m benchmarks.recovery --pid-file PATH       # every process in turn, killed; the decoder stopped, too
    python -m benchmarks.recovery --pid-file PATH --processes engine --rounds 5

The server must be running on this host, started by `stretto serve` and by this user; nobody else should use it.
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

from benchmarks.results_file import append_result, command_line
from stretto.launcher import background
from stretto_client import SpeechClient
from stretto_client.errors import ClientError

STUBS = ("preprocessor", "language_model", "acoustic_decoder")
AUDIO = "audio worker"  # of the preprocessor
PROCESSES = ("tritonserver", *STUBS, "engine", "proxy", AUDIO)
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
POLL_S, MAX_S = 0.02, 600.0
NOTICE_S = 3.0  # readiness that is true for so long stays so


def find(name: str, launcher: psutil.Process) -> psutil.Process:
    """The launcher's process of that name; LookupError where it has none."""
    for process in launcher.children(recursive=True):
        with suppress(psutil.Error):
            command = process.cmdline()
            if is_named(name, command, process.name()):
                return process
    raise LookupError(f"the launcher with pid {launcher.pid} has no process {name!r}")


def is_named(name: str, command: list[str], executable: str) -> bool:
    """Whether a process with that command is the one called `name` here."""
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
    """What the server's HTTP port says."""
    with suppress(OSError), urllib.request.urlopen(f"http://localhost:{port}/v2/health/ready", timeout=2) as answer:
        return answer.status == 200
    return False


def seconds_until(condition: Callable[[], bool], begun: float, max_s: float = MAX_S) -> float | None:
    """Seconds from `begun` until the condition holds; None where it does not within `max_s`."""
    while not condition():
        if time.perf_counter() - begun > max_s:
            return None
        time.sleep(POLL_S)
    return round(time.perf_counter() - begun, 2)


def recording() -> bytes:
    """A second of silence, as a wav file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, 16_000, 0, "NONE", ""))
        audio.writeframes(bytes(32_000))
    return file.getvalue()


def answers(port: int, name: str) -> bool:
    """Whether a short text is spoken to its end; where the process `name` reads audio, whether that is answered."""

    async def ask() -> bool:
        async with SpeechClient(f"localhost:{port}") as client:
            events = client.transcribe(recording()) if name == AUDIO else client.speak("hello")
            return [event async for event in events][-1].is_final

    with suppress(ClientError):
        return asyncio.run(ask())
    return False


def measure(name: str, how: str, record: dict[str, Any]) -> dict[str, Any]:
    """Kill or stop a process: when readiness was false, when true again, and when a text was spoken."""
    ports, launcher = record["ports"], psutil.Process(record["pid"])
    begun = time.perf_counter()
    os.kill(find(name, launcher).pid, SIGNALS[how])
    unready_s = seconds_until(lambda: not is_ready(ports["http"]), begun, NOTICE_S)
    found: dict[str, Any] = {"process": name, "how": how, "unready_s": unready_s}
    found["ready_s"] = seconds_until(lambda: is_ready(ports["http"]), begun)
    found["right_s"] = seconds_until(lambda: answers(ports["grpc"], name), begun)
    return found


def main() -> None:
    """Measure, one line for each signal."""
    flags = command_line(__doc__, "recovery")
    flags.add_argument("--pid-file", type=Path, required=True, help="of the launcher")
    flags.add_argument("--processes", nargs="+", choices=PROCESSES, default=PROCESSES)
    flags.add_argument("--rounds", type=int, default=1)
    flags.add_argument("--settle-s", type=float, default=61.0, help="rest between two, after which none is the second")
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
