"""Compare `stretto run` with the commands that it replaces, for a small random Pocket TTS on a hub on this machine.

    python -m benchmarks.one_command --rounds 5

Each round has a line. Times are from the start of the first command to the exit of the last one, which has written the
speech to a pipe. By hand, these are `hf download`, `convert`, `make-repository`, `serve` and `speak`; with a model that
is installed, `serve` and `speak`; with a server that runs, `speak`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.random_pocket import write_release
from benchmarks.harness import ROOT, Launch, append_result, command_line, stop_on_sigterm

PORT = "first of four ports for the server of stretto run"
REPOSITORY, TEXT = "acme/voice", "It is ten."
BIN = Path(sys.executable).parent


class Hub:
    """A loopback hub in a process of its own, which has a release.

    Args:
        release: Folder of the release.
    """

    def __init__(self, release: Path) -> None:
        command = [sys.executable, "-m", "tests.hub", REPOSITORY, str(release)]
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

    def command(self, name: str, *words: str | Path) -> float:
        """Run a program of the virtual environment, and return its duration in seconds."""
        begun = time.perf_counter()
        done = subprocess.run(
            [BIN / name, *words], env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True
        )
        if done.returncode:
            raise RuntimeError(f"{name} {words[0]}: {done.stderr.decode()}")
        return time.perf_counter() - begun

    def run(self) -> float:
        """Speak with `stretto run`, and return the seconds."""
        return self.command("stretto", "run", REPOSITORY, TEXT)

    def speak(self, server: str) -> float:
        """Speak with `stretto speak`, and return the seconds."""
        return self.command("stretto", "speak", TEXT, "--out", "-", "--server", server)

    def serve_and_speak(self) -> float:
        """Serve the model repository, speak, and return the seconds until then."""
        launch = Launch(self.folder / "repository", self.folder, environment=self.environment)
        begun = time.perf_counter()
        launch.start()
        self.speak(launch.address)
        seconds = time.perf_counter() - begun
        launch.stop()
        return seconds

    def disk_bytes(self) -> int:
        """Return the disk space of the user's files; a file with several names counts once."""
        found = [path.lstat() for path in self.folder.rglob("*")]
        return sum({each.st_ino: 512 * each.st_blocks for each in found}.values())


def measure_run(user: User) -> dict[str, Any]:
    """Return seconds, bytes and requests of `stretto run`, and of `stretto speak` with the same server."""
    requests, num_bytes = user.hub.counts()
    try:
        cold_s, disk_bytes = user.run(), user.disk_bytes()
        cold_requests, cold_bytes = user.hub.counts()
        running_s, speak_s = user.run(), user.speak(f"localhost:{user.port + 1}")
        user.command("stretto", "serve", "--stop")
        start_s = user.run()
    finally:
        user.command("stretto", "serve", "--stop")
    return {
        "running_s": running_s,
        "running_by_hand_s": speak_s,
        "installed_s": start_s,
        "new_s": cold_s,
        "disk_bytes": disk_bytes,
        "new_requests": cold_requests - requests,
        "new_hub_bytes": cold_bytes - num_bytes,
        "installed_requests": user.hub.counts()[0] - cold_requests,
    }


def measure_by_hand(user: User) -> dict[str, Any]:
    """Return seconds, bytes and requests of the commands by hand."""
    requests, num_bytes = user.hub.counts()
    seconds = user.command("hf", "download", REPOSITORY, "--local-dir", "release")
    later_requests, later_bytes = user.hub.counts()
    seconds += user.command("stretto", "convert", "pocket-tts", "--model", "release", "--out", "checkpoint")
    seconds += user.command("stretto", "make-repository", "--checkpoint", "checkpoint", "--out", "repository")
    disk_bytes = user.disk_bytes()
    seconds += user.serve_and_speak()
    return {
        "installed_by_hand_s": user.serve_and_speak(),
        "new_by_hand_s": seconds,
        "disk_by_hand_bytes": disk_bytes,
        "new_by_hand_requests": later_requests - requests,
        "new_by_hand_hub_bytes": later_bytes - num_bytes,
    }


def main() -> None:
    """Write a line for each round."""
    flags = command_line(__doc__, "one_command", rounds=(5, "how often each way is measured"), port=(23_800, PORT))
    given = flags.parse_args()
    stop_on_sigterm()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        hub = Hub(write_release(Path(folder) / "release"))
        for number in range(given.rounds):
            users = [User(hub, Path(folder) / f"{number}-{way}", given.port) for way in ("run", "by_hand")]
            for user in users:
                user.folder.mkdir()
            figures = measure_run(users[0]) | measure_by_hand(users[1])
            rounded = {name: round(value, 2) for name, value in figures.items()}
            append_result(given.out, "one_command", rounded)
        hub.close()


if __name__ == "__main__":
    main()
