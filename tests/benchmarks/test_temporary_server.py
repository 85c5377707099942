"""The ports of a server that is not up yet stay its own."""

import socket
from contextlib import ExitStack

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


def test_a_port_that_is_taken_is_not_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_ports(1)[0]))
        assert taken.getsockname()[1] not in free_ports(len(PORTS))
