"""Replicas of a server: shares of the machine, their launchers, and the gateway's command line."""

import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stretto.launcher import installation, replicas, shares, supervisor
from stretto.launcher.config import LaunchConfig, launch_config, parser
from stretto.launcher.installation import LaunchError, wait_for_ports
from stretto.launcher.replicas import Replicas, replica_config, words_of
from stretto.launcher.shares import Share, number_of_replicas, shares_of
from stretto.machine.gpus import Gpu
from tests.patience import PATIENCE_S

# Records how it was started, and waits until it is ended.
LAUNCHER = """#!/bin/sh
echo "$CUDA_VISIBLE_DEVICES|$(taskset -p $$ | tr -d '\\n')|$STRETTO_STARTER|$*" >> {path}
exec sleep 1000
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Return a function that pretends that this machine has some cores and GPUs."""

    def pretend(num_cores: int, num_gpus: int) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))
        monkeypatch.setattr(shares, "gpus", lambda: [Gpu(n, "H100", 1, 1, (9, 0)) for n in range(num_gpus)])

    return pretend


def config_of(*words: str) -> LaunchConfig:
    return launch_config(*parser().parse_known_args(list(words)))


def test_each_replica_gets_cores_of_its_own(machine: Callable[[int, int], None]) -> None:
    machine(8, 0)
    assert shares_of(3) == [Share(None, frozenset({first, first + 1})) for first in (0, 2, 4)]


def test_each_replica_gets_a_gpu_of_its_own(
    machine: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(2, 4)
    cores = frozenset({0, 1})
    assert shares_of("all") == [Share(str(number), cores) for number in range(4)]
    assert shares_of(2) == [Share("0", cores), Share("1", cores)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a, 3")
    assert shares_of("all") == [Share("GPU-5a", cores), Share("3", cores)]
    assert shares_of(2)[1].environment() == {"CUDA_VISIBLE_DEVICES": "3"}


@pytest.mark.parametrize(
    ("words", "cores", "gpus", "message"),
    [
        (["--replicas", "2"], 4, 0, "--replicas: requires --gateway"),
        (["--gateway", "--replicas", "5"], 4, 0, "--replicas: expected at most 4, the number of cores, got 5"),
        (["--gateway", "--replicas", "3"], 4, 2, "--replicas: expected at most 2, one for each GPU, got 3"),
        (["--gateway", "--replicas", "all"], 4, 0, "--replicas all: expected GPUs on this machine, got none"),
        (["--gateway", "--replicas", "2", "--http-port", "0", "--pid-file", "x"], 4, 0, "expected fixed ports"),
        (["--gateway", "--replicas", "2", "--http-port", "65530"], 4, 0, "up to 65535, got 65540"),
        (["--gateway", "--replicas", "2", "--idle-s", "60"], 4, 0, "--idle-s: expected no --replicas"),
    ],
)
def test_impossible_replicas_are_refused(
    machine: Callable[[int, int], None], words: list[str], cores: int, gpus: int, message: str
) -> None:
    machine(cores, gpus)
    with pytest.raises(LaunchError, match=message):
        config_of(*words)


@pytest.mark.parametrize("word", ["0", "-1", "65", "some"])
def test_number_of_replicas_is_checked(word: str) -> None:
    with pytest.raises(Exception, match="expected a number from 1 to 64, or all"):
        number_of_replicas(word)


def test_further_replicas_have_the_settings_of_the_first(machine: Callable[[int, int], None], tmp_path: Path) -> None:
    machine(4, 0)
    dictionary = tmp_path / "words.json"
    dictionary.write_text("{}")
    first = config_of(
        *("--gateway", "--replicas", "3", "--http-port", "9000", "--grpc-port", "9001", "--metrics-port", "9002"),
        *("--gateway-arg=--strict", "--allow", "trace", "--max-request-mb", "7", "--drain-seconds", "3"),
        *("--pronunciations", str(dictionary), "--log-verbose=1"),
    )
    third = replica_config(first, 2)
    assert third.ports == {"http": 9020, "grpc": 9021, "metrics": 9022}
    assert config_of(*words_of(third)) == third
    assert third.pid_file != first.pid_file


def test_ports_of_each_replica_must_be_free(
    machine: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(4, 0)
    config = config_of("--gateway", "--replicas", "3")
    monkeypatch.setattr(installation, "_is_taken", lambda port: port == config.grpc_port + 20)
    monkeypatch.setattr(supervisor, "wait_for_ports", partial(wait_for_ports, timeout_s=0.0))
    nothing: Any = None
    with pytest.raises(LaunchError, match=f"port {config.grpc_port + 20} is in use"):
        supervisor.Supervisor(config, nothing, nothing, nothing).run()


def test_launchers_are_started_restarted_and_ended(
    machine: Callable[[int, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = min(os.sched_getaffinity(0))
    machine(4, 0)
    first = config_of("--gateway", "--replicas", "2")
    started = tmp_path / "started"
    program = tmp_path / "python"
    program.write_text(LAUNCHER.format(path=started))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(replicas.sys, "executable", str(program))
    monkeypatch.setattr(replicas, "RESTART_S", 0.0)
    monkeypatch.setenv("STRETTO_STARTER", "1")
    object.__setattr__(first, "shares", (Share("0", frozenset({core})), Share("1", frozenset({core}))))
    others = Replicas(first)
    process = others._processes[0]
    assert process is not None
    try:
        wait_for(lambda: started.exists() and started.read_text().count("\n") == 1)
        device, affinity, starter, words = started.read_text().strip().split("|")
        assert (device, starter) == ("1", "")
        assert int(affinity.rpartition(" ")[2], 16) == 1 << core
        assert words.split()[:4] == ["-P", "-m", "stretto", "serve"]
        process.kill()
        process.wait()
        others.keep_alive()
        wait_for(lambda: started.read_text().count("\n") == 2)
    finally:
        others.stop()
    assert all(process is not None and process.poll() is not None for process in others._processes)


def wait_for(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.02)
