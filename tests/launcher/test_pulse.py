"""A front-end process that hangs is distinguished from a slow one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from stretto.launcher import faults
from stretto.launcher import pulse as pulse_module
from stretto.launcher.processes import is_stopped
from stretto.launcher.pulse import MAX_MISSED, MAX_MISSED_AT_START, Pulse
from stretto_contract.heartbeat import BEATS, KEPT_LISTENER, keep_listener
from tests.patience import until

PROGRAM = f"import os, sys\nfor line in sys.stdin: os.write(int(os.environ['{BEATS}']), b'.')"


class Child:
    """Child process that sends a heartbeat for each line that it reads."""

    def __init__(self) -> None:
        self.pulse = Pulse("gateway")
        self.start()

    def start(self) -> None:
        environment = os.environ | self.pulse.prepare()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=environment, pass_fds=self.pulse.inherited, stdin=subprocess.PIPE
        )
        self.pulse.begin(self.process.pid)

    def beat(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.setattr(pulse_module, "POLL_S", 3600.0)
    monkeypatch.setattr(pulse_module, "slowness", lambda: 1.0)
    monkeypatch.setattr(faults, "PROOF_S", 0.0)
    made = Child()
    yield made
    made.end()
    made.pulse.close()


def until_beaten(child: Child) -> None:
    child.beat()
    until(lambda: not child.pulse.fault() and child.pulse.has_beaten)


def test_process_without_heartbeats_is_reported_as_hung(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    until_beaten(child)
    monkeypatch.setattr(pulse_module, "POLL_S", 0.0)
    assert [child.pulse.is_hung() for _ in range(MAX_MISSED)] == [False] * (MAX_MISSED - 1) + [True]
    assert child.pulse.fault() == f"the gateway (pid {child.process.pid}) does not answer"


def test_hang_detection_timeout_scales_with_machine_load(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "slowness", lambda: 10.0)
    until_beaten(child)
    monkeypatch.setattr(pulse_module, "POLL_S", 0.0)
    assert not any(child.pulse.is_hung() for _ in range(MAX_MISSED + 1))


def test_startup_allows_more_missed_heartbeats(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "POLL_S", 0.0)
    assert not any(child.pulse.is_hung() for _ in range(MAX_MISSED_AT_START - 1))
    assert child.pulse.is_hung()


def test_stopped_process_is_a_fault_and_later_a_hang(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PROOF_S", 3600.0)
    os.kill(child.process.pid, signal.SIGSTOP)
    while not is_stopped(child.process.pid):
        time.sleep(0.001)
    assert child.pulse.fault() == f"the gateway (pid {child.process.pid}) is stopped"
    assert not child.pulse.is_hung()
    monkeypatch.setattr(faults, "PROOF_S", 0.0)
    assert child.pulse.is_hung()


def test_restarted_process_is_a_fault_until_its_first_heartbeat(child: Child) -> None:
    assert child.pulse.fault() == ""
    child.end()
    child.start()
    assert child.pulse.fault() == "the gateway is being restarted"
    until_beaten(child)


@pytest.mark.parametrize("works", [True, False])
def test_listener_of_a_process_that_worked_is_kept_for_the_next_one(works: bool) -> None:
    pulse = Pulse("gateway")
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.MonkeyPatch.context() as patch:
        environment = pulse.prepare()
        assert KEPT_LISTENER not in environment
        patch.setenv(BEATS, environment[BEATS])
        keep_listener(listener)
        if works:
            os.write(int(environment[BEATS]), b".")
        pulse.begin(os.getpid())
        name = listener.getsockname()
    environment = pulse.prepare()
    assert (KEPT_LISTENER in environment) == works
    if works:
        with socket.create_connection(name), socket.socket(fileno=os.dup(int(environment[KEPT_LISTENER]))) as kept:
            assert kept.accept()[0].getsockname() == name
    pulse.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(name)
