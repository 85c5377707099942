"""The gateway process that the launcher runs."""

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stretto.launcher import front_ends
from stretto.launcher.config import LaunchConfig, launch_config, parser
from stretto.launcher.front_ends import GatewayProcess
from stretto.launcher.installation import LaunchError
from stretto.launcher.launch import Launch, begin_launch
from stretto.launcher.launch_log import LaunchLog
from stretto_gateway.command import arguments, read_config
from tests.patience import PATIENCE_S, until, written
from tests.ports import free_ports

# of a process that is never started
NO_LOG: Any = None
NO_LAUNCH: Any = None


def never_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start neither gateways nor the spare process that forks them."""
    monkeypatch.setattr(front_ends, "gateway_spare", lambda launch, log: None)
    monkeypatch.setattr(GatewayProcess, "_start", lambda _: None)


@pytest.fixture
def launch() -> Iterator[Launch]:
    launch = begin_launch()
    yield launch
    launch.close()


def config(tmp_path: Path, *arguments: str) -> LaunchConfig:
    flags, passed = parser().parse_known_args(["--gateway", "--log-file", str(tmp_path / "log"), *arguments])
    return launch_config(flags, passed)


def answers(port: int) -> bool:
    """Return True if a gateway answers on this port."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=5) as page:
                return bool(page.status == 200)
        except OSError:
            time.sleep(0.05)
    return False


def until_well(process: GatewayProcess) -> None:
    """Wait until the gateway sends heartbeats and is healthy."""
    until(lambda: not process.fault() and process._pulse.has_beaten)


@pytest.fixture
def begun(tmp_path: Path, launch: Launch) -> Iterator[tuple[GatewayProcess, int]]:
    (port,), log = free_ports(1), LaunchLog(tmp_path / "log")
    process = GatewayProcess(config(tmp_path), port, launch, log)
    yield process, port
    process.stop()
    log.close()


@pytest.mark.slow
def test_gateway_process_listens_and_drains(begun: tuple[GatewayProcess, int], tmp_path: Path) -> None:
    """`test_front_ends.py` restarts one."""
    process, port = begun
    assert answers(port)
    until(lambda: "listening at" in written(tmp_path / "log"))
    until_well(process)
    process.drain(iter(lambda: time.sleep(0.01), True))
    assert process.fault() == "the gateway has ended"


@pytest.mark.slow
def test_invalid_gateway_arguments_end_the_launcher(tmp_path: Path, launch: Launch) -> None:
    (port,), log = free_ports(1), LaunchLog(tmp_path / "log")
    process = GatewayProcess(config(tmp_path, "--gateway-arg=--cors-origin=null"), port, launch, log)

    def keep_alive_until_well() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            process.keep_alive()
            time.sleep(0.05)

    try:
        with pytest.raises(LaunchError, match=r"gateway: --cors-origin: expected an origin .*, got 'null'"):
            keep_alive_until_well()
    finally:
        process.stop()
        log.close()


@pytest.mark.parametrize(
    ("address", "server"),
    [
        ("0.0.0.0", "localhost:8001"),
        ("::", "localhost:8001"),
        ("10.1.2.3", "10.1.2.3:8001"),
        ("fd00::1", "[fd00::1]:8001"),
    ],
)
def test_gateway_connects_to_the_server_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, server: str
) -> None:
    never_start(monkeypatch)
    line = GatewayProcess(config(tmp_path, "--address", address), 8003, NO_LAUNCH, NO_LOG).command_line()
    assert line[line.index("--server") + 1] == server
    assert line[line.index("--address") + 1] == address


def test_gateway_args_are_passed_to_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_start(monkeypatch)
    words = ("--gateway-arg=--strict", "--gateway-arg=--model-alias", "--gateway-arg=my/voice=tiny")
    line = GatewayProcess(config(tmp_path, *words), 8003, NO_LAUNCH, NO_LOG).command_line()
    known = read_config(arguments().parse_args(line[line.index("--server") :]))
    assert (known.strict, known.model_aliases) == (True, {"my/voice": "tiny"})
    flags, passed = parser().parse_known_args(["--gateway-arg=--strict"])
    with pytest.raises(LaunchError, match="--gateway-arg: requires --gateway"):
        launch_config(flags, passed)


def test_voices_are_stored_in_the_state_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never_start(monkeypatch)
    monkeypatch.setattr(front_ends, "state_folder", lambda: tmp_path / "state")

    def folder(*words: str) -> Path | None:
        line = GatewayProcess(config(tmp_path, *words), 8003, NO_LAUNCH, NO_LOG).command_line()
        return read_config(arguments().parse_args(line[line.index("--server") :])).voices

    assert folder() == tmp_path / "state" / "voices"
    assert (tmp_path / "state" / "voices").stat().st_mode & 0o777 == 0o700
    assert folder(f"--gateway-arg=--voices={tmp_path / 'mine'}") == tmp_path / "mine"
    monkeypatch.setattr(front_ends, "state_folder", lambda: Path("/dev/null/state"))
    assert folder() is None
    assert "voices cannot be stored: cannot create /dev/null/state/voices" in capsys.readouterr().err
    monkeypatch.setenv(front_ends.VOICES, str(tmp_path / "other"))
    assert folder() == tmp_path / "other"


def test_gateway_drain_time_is_set_by_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_start(monkeypatch)
    line = GatewayProcess(config(tmp_path, "--drain-seconds", "75"), 8003, NO_LAUNCH, NO_LOG).command_line()
    assert read_config(arguments().parse_args(line[line.index("--server") :])).limits.drain_s == 75


def test_gateway_waits_for_the_start_of_a_server_that_sleeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_start(monkeypatch)
    for flags, wait_s in (((), 30), (("--idle-s", "60", "--start-seconds", "900"), 900)):
        line = GatewayProcess(config(tmp_path, *flags), 8003, NO_LAUNCH, NO_LOG).command_line()
        settings = read_config(arguments().parse_args(line[line.index("--server") :]))
        assert settings.limits.first_s == wait_s


def test_cors_origins_are_passed_to_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_start(monkeypatch)
    origins = ("--gateway-arg=--cors-origin=https://a.example", "--gateway-arg=--cors-origin=*")
    line = GatewayProcess(config(tmp_path, *origins), 8003, NO_LAUNCH, NO_LOG).command_line()
    assert read_config(arguments().parse_args(line[line.index("--server") :])).cors_origins == (
        "https://a.example",
        "*",
    )


def test_error_names_missing_gateway_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_ends, "NEEDED", ("no_such_module",))
    with pytest.raises(LaunchError, match="'no_such_module'; install the extra 'gateway'"):
        GatewayProcess(config(tmp_path), 8003, NO_LAUNCH, NO_LOG)
