"""A command that is ended while its server starts leaves no process and no files, and the next one works."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plugins.pocket.tests.server.test_run_server import SENTENCE, User, user
from stretto.launcher import background
from stretto.launcher.config import default_pid_file
from stretto.launcher.installation import state_folder
from stretto.launcher.processes import all_processes, environment_of
from stretto.releases.run import RECORD
from tests.held_processes import MARK, held_at
from tests.installed_models import contents
from tests.patience import until

__all__ = ["user"]  # a fixture

# By night, because each test starts a server. tests/launcher has those by day, with a scripted server.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

COMMANDS = {
    "server": ("run", "acme/voice"),
    "once": ("run", "acme/voice", SENTENCE),
    "installed": ("serve", "--model", "acme/voice"),
}
EVENTS = {
    "preparing": ("open", r"/served-cpu\.partial/\S+/config\.pbtxt w"),  # in the process that converts
    "configuring": ("import", r"^vllm\.v1\.engine\.core_client "),  # in the process that starts the engine
    "loading": ("glob.glob", r"/checkpoint/\*\.safetensors "),  # in the engine
}
POINTS = [
    ("server", "preparing"),
    ("server", "configuring"),
    ("server", "loading"),
    ("once", "loading"),
    ("installed", "loading"),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("command", "point"), POINTS)
def test_ended_start_leaves_nothing(
    command: str, point: str, number: signal.Signals, user: User, tmp_path: Path
) -> None:
    user.stretto("pull", "acme/voice", "--cpu")
    (model,) = (user.folder / "models").glob("voice--*")
    if point == "preparing":
        (model / "served-cpu" / RECORD).unlink(missing_ok=True)
    elif not (model / "served-cpu").exists():
        user.stretto("run", "acme/voice", SENTENCE)
        user.stretto("serve", "--stop")
    before = contents(model)
    mark = tmp_path / "mark"
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stretto", *COMMANDS[command]],
            env=user.environment | held_at(*EVENTS[point], mark),
            cwd=user.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    pid_file = default_pid_file(int(user.environment["STRETTO_PORT"]), state_folder())
    while not mark.exists():
        record = background.read(pid_file)
        assert record is None or record["state"] == "starting", f"not held before {EVENTS[point]}"
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    record = background.read(pid_file)
    assert (record is None) == (point == "preparing")
    process.send_signal(number)
    status = process.wait()
    until(lambda: not [each for each in all_processes() if environment_of(each.pid, MARK) == str(mark)])
    assert background.read(pid_file) is None
    assert record is None or not list(Path("/dev/shm").glob(f"stretto_launch_{record['pid']}_*"))
    if point == "preparing":
        assert not (model / "served-cpu" / RECORD).exists()
    else:
        assert contents(model) == before
    if number == signal.SIGKILL:
        assert status == -number
        user.stretto("run", "acme/voice", SENTENCE)
        user.stretto("serve", "--stop")
        return
    stops = {"preparing": 130, "loading": 0, "configuring": 0}[point]  # a server stops, everything else is interrupted
    assert status == ((130 if number == signal.SIGINT else -number) if command == "once" else stops)
    assert "Traceback" not in log.read_text()
