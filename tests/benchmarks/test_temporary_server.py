"""The ports of a server that is not up yet stay its own."""

import socket
import subprocess
import sys
from contextlib import ExitStack
from subprocess import PIPE

import pytest

from benchmarks import temporary_server
from benchmarks.results_file import ROOT
from benchmarks.temporary_server import PORTS, free_ports


def test_free_ports_are_many_and_nobody_is_given_one_by_chance() -> None:
    ports = free_ports(40)
    assert len(set(ports)) == 40
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.socket()).bind(("", port))
    with socket.socket() as client:
        client.bind(("", 0))
        assert client.getsockname()[1] not in PORTS


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = free_ports(2)
    monkeypatch.setattr(temporary_server, "PORTS", range(9_980, 9_990))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 9_984))
        given = free_ports(9)
    assert sorted(given) == [*range(9_980, 9_984), *range(9_985, 9_990)]
    assert not {*ports} & {*given}


def test_a_port_is_given_once_by_all_processes_even_when_their_random_numbers_are_the_same() -> None:
    ports = [free_ports(20)]
    ask = "import random; random.seed(0); from benchmarks.temporary_server import free_ports; print(*free_ports(20))"
    ask += "; input()"
    with ExitStack() as stack:
        for _ in range(2):
            command = [sys.executable, "-c", ask]
            process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True))
            assert process.stdout is not None
            ports.append([int(port) for port in process.stdout.readline().split()])
    assert len({port for each in ports for port in each}) == 60


def test_ports_that_are_not_there_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary_server, "PORTS", range(9_990, 9_992))
    with pytest.raises(ConnectionError, match=r"2 of 3 free ports in range\(9990, 9992\)"):
        free_ports(3)
