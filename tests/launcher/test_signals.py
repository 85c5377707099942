"""Signals that end the launcher in every state, with its processes and its shared memory."""

import signal
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path

import pytest

from stretto.launcher import background
from stretto.launcher.background import STARTER
from tests.launcher.launched import EARLY, STARTED, WAITS, Launch, Launched, busy_table, hang
from tests.patience import PATIENCE_S
from tests.tiers import by_night

pytestmark = pytest.mark.slow

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


def has_left_nothing(server: Launched, *numbers: signal.Signals) -> bool:
    """Send signals, and return True if the launcher leaves no process, shared memory or pid file."""
    running = server.proxies()
    for number in numbers:
        server.process.send_signal(number)
    assert server.process.wait(PATIENCE_S) == 0, server.said
    server.until(lambda: not any(Path("/proc", str(pid)).exists() for pid in running))
    return server.leftovers() == [] and server.processes() == [] and server.state is None


# By day each signal in one state or another.
@pytest.mark.parametrize("number", [TERM, *by_night(INT, HUP)])
def test_signal_before_the_server_starts_leaves_nothing(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv(EARLY, str(int(number)))
    server = launch()
    assert has_left_nothing(server)
    assert not (server.folder / "starts").exists()


def test_launcher_stops_if_its_starter_has_ended(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTER, "1")  # not the parent of the launcher
    server = launch()
    assert has_left_nothing(server)
    assert not (server.folder / "starts").exists()


def test_launcher_ends_with_its_starter_before_the_server_is_ready(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STARTED, "1")
    hang(tmp_path, 9, "waiting")
    server = launch(0, "--start-attempts=99")
    server.until((tmp_path / "stub").exists)
    server.process.kill()
    server.until(lambda: server.state is None)
    server.until(lambda: server.leftovers() == [] and server.processes() == [])


def test_launcher_outlives_its_starter_once_the_server_is_ready(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STARTED, "1")
    (tmp_path / "reloads").touch()
    server = launch()
    server.until_ready()
    server.process.kill()
    server.process.wait()
    server.kill_stub()
    server.until_ready(2)
    assert background.stop(tmp_path / "serve.json")
    assert "stopped" in server.said


@pytest.mark.parametrize("numbers", [(HUP,), *by_night(((TERM, TERM),), ((INT,),))])
def test_signals_during_startup_leave_no_leftovers(
    launch: Launch, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    hang(tmp_path, 9, "waiting")
    server = launch(0, "--start-attempts=99")
    server.until((tmp_path / "stub").exists)
    assert has_left_nothing(server, *numbers)


# Two equal pending signals would be delivered once.
@pytest.mark.parametrize("numbers", [(INT, TERM), *by_night(((TERM, HUP),))])
def test_signals_while_serving_leave_no_leftovers(launch: Launch, numbers: tuple[signal.Signals, ...]) -> None:
    server = launch(0, "--drain-seconds=600")
    server.until_ready()
    table = busy_table(server.server_pid)
    assert has_left_nothing(server, *numbers)
    table.remove()


@pytest.mark.parametrize("number", [INT, *by_night(TERM, HUP)])
def test_signals_during_a_model_restart_leave_no_leftovers(
    launch: Launch, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "reloads").touch()
    (tmp_path / "slow").touch()
    server = launch()
    server.until(lambda: server.state == "ready")
    server.kill_stub()
    server.until(lambda: "/load" in (tmp_path / "reloads").read_text())
    assert has_left_nothing(server, number)


def readiness(server: Launched) -> int:
    """Return the HTTP status of the readiness endpoint."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.ports[0]}/v2/health/ready", timeout=PATIENCE_S
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_restart_delays_grow_for_a_repeatedly_dying_stub(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAITS, "1")
    (tmp_path / "reloads").touch()
    server = launch(0, "--start-attempts=1")
    server.until(lambda: server.state == "ready")
    (tmp_path / "dies").touch()
    server.kill_stub()
    server.until(lambda: "a stub ended as soon as its model was loaded; the next start is in 1 s" in server.said)
    assert readiness(server) == HTTPStatus.SERVICE_UNAVAILABLE
    assert server.state != "ready"
    (tmp_path / "dies").unlink()
    server.until_ready(2)
    (tmp_path / "dies").touch()  # too soon to reset the delay
    server.kill_stub()
    server.until(lambda: "the next start is in 4 s" in server.said)
    assert has_left_nothing(server, TERM)
