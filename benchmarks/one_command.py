"""Compare `stretto run` with the commands that it replaces, for random releases on a hub on this machine.

    python -m benchmarks.one_command --rounds 5 --release small pocket-tts qwen3-tts --gbit-s 1

Each round of each release has a line. Times are from the start of the first command to the first sample of the speech
(`…_first_s`), and to the exit of the last command (`…_s`), which has written the speech to a pipe. By hand, these are
`hf download`, `convert`, `make-repository`, `serve` and `speak`; with a model that is installed, `serve` and `speak`;
with a server that runs, `speak`.

`pocket-tts` and `qwen3-tts` have the size of published releases, 0.4 and 2.5 GB. A round needs three times as much disk
space, in the folder for temporary files, and qwen3-tts 8 GB of memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.checkpoints import random_pocket, random_qwen3_codec, random_qwen3_tts
from benchmarks.harness import ROOT, Launch, append_result, command_line, stop_on_sigterm

PORT = "first of four ports for the server of stretto run"
REPOSITORY = "acme/voice"
TEXT = "It is ten."
SHORT = ("--options", '{"max_audio_s": 1}')  # random models do not end by themselves
BIN = Path(sys.executable).parent
WAV_HEADER_BYTES = 44


@dataclass(frozen=True)
class Release:
    """A random release.

    Attributes:
        write: Function that writes it to a new folder.
        convert: Arguments of `stretto convert` by hand, with the folder `release` as current folder.
    """

    write: Callable[[Path], object]
    convert: tuple[str, ...]


def write_qwen3_tts(folder: Path) -> None:
    """Write a release of Qwen3-TTS of the size of the 0.6B model, with its codec."""
    random_qwen3_tts.write_release(folder, random_qwen3_tts.published_config(), is_half=True)
    (folder / "generation_config.json").write_text("{}")
    random_qwen3_codec.write_qwen3_codec(folder / "speech_tokenizer", "wide")


POCKET = ("pocket-tts", "--model", ".")
QWEN = ("qwen3-tts", "--model", ".", "--config", "config.json", "--tokenizer", ".", "--codec", "speech_tokenizer")
RELEASES = {
    "small": Release(random_pocket.write_release, POCKET),
    "pocket-tts": Release(lambda folder: random_pocket.write_release(folder, "published"), POCKET),
    "qwen3-tts": Release(write_qwen3_tts, QWEN),
}


class Spoken(NamedTuple):
    """Seconds until the first sample and until the exit of a command, and the time of each line of its output."""

    first_s: float
    seconds: float
    lines: list[tuple[float, str]]


class Hub:
    """A loopback hub in a process of its own, which has a release.

    Args:
        release: Folder of the release.
        bytes_per_s: Rate of the network that all transfers share; 0 for no limit.
    """

    def __init__(self, release: Path, bytes_per_s: float = 0) -> None:
        command = [sys.executable, "-m", "tests.hub", REPOSITORY, str(release), str(bytes_per_s)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self._read()

    def counts(self) -> tuple[int, int]:
        """Return the number of requests and of bytes sent so far."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        requests, num_bytes = json.loads(self._read())
        return requests, num_bytes

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@dataclass
class User:
    """A user without any models.

    Attributes:
        hub: Hub of the release.
        folder: New folder of the user.
        port: HTTP port of the server that `stretto run` starts; the next three are free as well.
    """

    hub: Hub
    folder: Path
    port: int

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment of the commands."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        own |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_PROXY": "localhost,127.0.0.1"}
        return kept | own | {"STRETTO_MODELS": str(self.folder / "models"), "STRETTO_PORT": str(self.port)}

    def command(self, name: str, *words: str | Path, folder: str = ".") -> float:
        """Run a program of the virtual environment in a folder, and return its duration in seconds."""
        begun = time.perf_counter()
        done = subprocess.run(
            [BIN / name, *words],
            env=self.environment,
            cwd=self.folder / folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name} {words[0]}: {done.stderr.decode()}")
        return time.perf_counter() - begun

    def spoken(self, *words: str) -> Spoken:
        """Run a `stretto` command that writes speech to a pipe."""
        lines: list[tuple[float, str]] = []
        begun = time.perf_counter()
        process = subprocess.Popen(
            [BIN / "stretto", *words],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        errors = process.stderr

        def read_lines() -> None:
            lines.extend((time.perf_counter() - begun, line.decode().rstrip()) for line in errors)

        with process:
            reader = threading.Thread(target=read_lines)
            reader.start()
            has_samples = len(process.stdout.read(WAV_HEADER_BYTES + 1)) > WAV_HEADER_BYTES
            first_s = time.perf_counter() - begun
            process.stdout.read()
            reader.join()
        if process.returncode or not has_samples:
            raise RuntimeError(f"{words[0]}: status {process.returncode}: {lines}")
        return Spoken(first_s, time.perf_counter() - begun, lines)

    def run(self) -> Spoken:
        """Speak with `stretto run`."""
        return self.spoken("run", REPOSITORY, TEXT, *SHORT)

    def speak(self, server: str) -> Spoken:
        """Speak with `stretto speak`."""
        return self.spoken("speak", TEXT, *SHORT, "--out", "-", "--server", server)

    def serve_and_speak(self) -> tuple[float, float]:
        """Serve the model repository and speak; return the seconds until the first sample and until the end."""
        launch = Launch(self.folder / "repository", self.folder, environment=self.environment)
        begun = time.perf_counter()
        launch.start()
        start_s = time.perf_counter() - begun
        spoken = self.speak(launch.address)
        launch.stop()
        return start_s + spoken.first_s, start_s + spoken.seconds

    def disk_bytes(self) -> int:
        """Return the disk space of the user's files; a file with several names counts once."""
        found = [path.lstat() for path in self.folder.rglob("*")]
        return sum({each.st_ino: 512 * each.st_blocks for each in found}.values())


def stages(lines: list[tuple[float, str]]) -> dict[str, float]:
    """Return the seconds from each stage's first line to that of the next stage, by the stage's label."""
    begun: dict[str, float] = {}
    for seconds, line in lines:
        label = line[: line.find(" ")]
        if label:
            begun.setdefault(label, seconds)
    ends = [*begun.values()][1:]
    return {label: round(end - start, 2) for (label, start), end in zip(begun.items(), ends, strict=False)}


def measure_run(user: User) -> dict[str, Any]:
    """Return seconds, bytes and requests of `stretto run`, and of `stretto speak` with the same server."""
    requests, num_bytes = user.hub.counts()
    try:
        cold = user.run()
        disk_bytes = user.disk_bytes()
        cold_requests, cold_bytes = user.hub.counts()
        running = user.run()
        speak = user.speak(f"localhost:{user.port + 1}")
        user.command("stretto", "serve", "--stop")
        start = user.run()
    finally:
        user.command("stretto", "serve", "--stop")
    return {
        "running_first_s": running.first_s,
        "running_s": running.seconds,
        "running_by_hand_first_s": speak.first_s,
        "running_by_hand_s": speak.seconds,
        "installed_first_s": start.first_s,
        "installed_s": start.seconds,
        "new_first_s": cold.first_s,
        "new_s": cold.seconds,
        "new_stages_s": stages(cold.lines),
        "disk_bytes": disk_bytes,
        "new_requests": cold_requests - requests,
        "new_hub_bytes": cold_bytes - num_bytes,
        "installed_requests": user.hub.counts()[0] - cold_requests,
    }


def measure_by_hand(user: User, convert: tuple[str, ...]) -> dict[str, Any]:
    """Return seconds, bytes and requests of the commands by hand.

    Args:
        user: A user without any models.
        convert: Arguments of `stretto convert`.
    """
    requests, num_bytes = user.hub.counts()
    steps = {"download": user.command("hf", "download", REPOSITORY, "--local-dir", "release")}
    later_requests, later_bytes = user.hub.counts()
    out = user.folder / "checkpoint"
    steps["convert"] = user.command("stretto", "convert", *convert, "--out", out, folder="release")
    steps["repository"] = user.command("stretto", "make-repository", "--checkpoint", out, "--out", "repository")
    disk_bytes = user.disk_bytes()
    seconds = sum(steps.values())
    first_s, spoken_s = user.serve_and_speak()
    installed_first_s, installed_s = user.serve_and_speak()
    return {
        "installed_by_hand_first_s": installed_first_s,
        "installed_by_hand_s": installed_s,
        "new_by_hand_first_s": seconds + first_s,
        "new_by_hand_s": seconds + spoken_s,
        "new_by_hand_stages_s": {name: round(value, 2) for name, value in steps.items()},
        "disk_by_hand_bytes": disk_bytes,
        "new_by_hand_requests": later_requests - requests,
        "new_by_hand_hub_bytes": later_bytes - num_bytes,
    }


def main() -> None:
    """Write a line for each release and round."""
    flags = command_line(
        __doc__,
        "one_command",
        rounds=(5, "how often each way is measured"),
        release=(["small"], f"releases: {', '.join(RELEASES)}"),
        gbit_s=(0.0, "rate of the hub's network in Gbit/s; 0 for no limit"),
        port=(23_800, PORT),
    )
    given = flags.parse_args()
    if unknown := {*given.release} - RELEASES.keys():
        flags.error(f"--release: expected {', '.join(RELEASES)}, got {unknown.pop()!r}")
    stop_on_sigterm()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for name in given.release:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, given.rounds, given.gbit_s, given.port, Path(folder), given.out)


def measure(name: str, num_rounds: int, gbit_s: float, port: int, folder: Path, out: Path) -> None:
    """Write a line for each round of a release.

    Args:
        name: Key of `RELEASES`.
        num_rounds: Number of rounds.
        gbit_s: Rate of the hub's network in Gbit/s; 0 for no limit.
        port: First of four ports for the server.
        folder: Empty folder.
        out: File of the lines.
    """
    RELEASES[name].write(folder / "release")
    hub = Hub(folder / "release", gbit_s * 1e9 / 8)
    for _ in range(num_rounds):
        figures: dict[str, Any] = {"release": name, "gbit_s": gbit_s}
        for way in ("run", "by_hand"):
            with tempfile.TemporaryDirectory(dir=folder) as own:
                user = User(hub, Path(own), port)
                figures |= measure_run(user) if way == "run" else measure_by_hand(user, RELEASES[name].convert)
        rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in figures.items()}
        append_result(out, "one_command", rounded)
    hub.close()


if __name__ == "__main__":
    main()
