"""Connections of the proxy: how many the limit on open files permits, and which of them are closed."""

import asyncio
import errno
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from stretto.proxy.connections import (
    ConnectionLimits,
    Connections,
    address_of,
    client_of,
    open_files,
    peer_address,
)
from stretto.proxy.messages import STOPPING, Ports
from tests.patience import PATIENCE_S
from tests.proxy.conftest import proxy_config
from tests.proxy.test_grpc_proxy import call, service_pb2
from tests.proxy.test_peers import PREFACE, SETTINGS, frame

HELLO = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0)


@pytest.mark.parametrize(
    ("num_files", "grpc", "page"),
    [(1 << 20, 8192, 256), (9280, 8192, 256), (9279, 8191, 256), (4096, 3024, 252), (256, 144, 12), (64, 8, 8)],
)
def test_connections_are_limited_by_the_number_of_files(num_files: int, grpc: int, page: int) -> None:
    limits = ConnectionLimits.within(num_files)
    assert (limits.grpc, limits.page) == (grpc, page)
    assert bool(limits.warning()) == (num_files < 9280)


def test_warning_names_the_limits_and_the_number_of_files() -> None:
    expected = "at most 144 gRPC connections instead of 8192, and 12 instead of 256 to each HTTP port, because the hard"
    assert (
        expected + " limit on open files is 256 (ulimit -Hn); expected at least 9280"
        in ConnectionLimits.within(256).warning()
    )


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("ipv4:127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("ipv6:%5B::ffff:10.0.0.7%5D:5000", ("::ffff:10.0.0.7", 5000, 0, 0)),
        ("ipv6:[2001:db8::6]:5000", ("2001:db8::6", 5000, 0, 0)),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", ("fe80::1%eth0", 5000, 0, 2)),
    ],
)
def test_grpc_and_sockets_name_a_connection_equally(peer: str, name: tuple[str, int]) -> None:
    assert peer_address(peer) == address_of(name)


def test_peer_without_an_address_is_named_as_it_is() -> None:
    assert peer_address("unix:/a/socket") == ("unix:/a/socket", 0)


class Accepted:
    """A listener in this process, with the connections that clients have opened to it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = self._listener.getsockname()[1]
        self._accepted: list[socket.socket] = []

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(("127.0.0.1", self.port), None, (host, 0)))
        self._accepted.append(self._stack.enter_context(self._listener.accept()[0]))
        return client

    def is_open(self, client: socket.socket) -> bool:
        client.setblocking(False)
        try:
            return client.recv(1) != b""
        except BlockingIOError:
            return True


@pytest.fixture
def accepted() -> Iterator[Accepted]:
    with ExitStack() as stack:
        yield Accepted(stack)


def peer_of(client: socket.socket) -> str:
    host, port = client.getsockname()
    return f"ipv4:{host}:{port}"


def close_idle(connections: Connections, port: int) -> int:
    return connections.close_idle(port, open_files(1 << 20))


def test_connections_of_the_port_are_found(accepted: Accepted) -> None:
    clients = [accepted.connect(), accepted.connect("127.0.0.2")]
    found = {client_of(each, accepted.port) for each in open_files(1 << 20)}
    assert found == {None, *(each.getsockname() for each in clients)}
    assert all(map(accepted.is_open, clients))


def test_descriptors_are_found_while_none_is_left(monkeypatch: pytest.MonkeyPatch, accepted: Accepted) -> None:
    client = accepted.connect()

    def fail(path: str) -> list[str]:
        raise OSError(errno.EMFILE, path)

    monkeypatch.setattr("os.listdir", fail)
    assert client.getsockname() in {client_of(each, accepted.port) for each in open_files(1 << 10)}


def test_longest_idle_connection_of_the_largest_host_is_closed(accepted: Accepted) -> None:
    connections = Connections(ConnectionLimits(4))  # of which three may stay
    other, *theirs = accepted.connect(), *(accepted.connect("127.0.0.2") for _ in range(3))
    with connections.call(peer_of(theirs[0])):
        close_idle(connections, accepted.port)
        assert all(map(accepted.is_open, (other, *theirs))), "each is new, and may be about to send a call"
        with connections.call(peer_of(theirs[1])):
            pass
        close_idle(connections, accepted.port)
    # busy; was busy later; idle for longest
    assert [accepted.is_open(each) for each in theirs] == [True, True, False]
    assert accepted.is_open(other)


def test_no_connection_is_closed_while_few_are_open(accepted: Accepted) -> None:
    clients, connections = [accepted.connect() for _ in range(3)], Connections(ConnectionLimits(4))
    for _ in range(3):
        close_idle(connections, accepted.port)
    assert all(map(accepted.is_open, clients))


def test_host_with_half_of_the_busy_connections_gets_no_more() -> None:
    connections = Connections(ConnectionLimits(4))
    with ExitStack() as stack:
        for port in (1, 2):
            assert stack.enter_context(connections.call(f"ipv4:127.0.0.2:{port}"))
        with connections.call("ipv4:127.0.0.2:3") as has_connection:
            assert not has_connection
        assert stack.enter_context(connections.call("ipv4:127.0.0.2:1")), "on a busy connection"
        with connections.call("ipv4:127.0.0.1:3") as has_connection:
            assert has_connection
    with connections.call("ipv4:127.0.0.2:3") as has_connection:
        assert has_connection


@contextmanager
def process(num_files: int) -> Iterator[tuple["subprocess.Popen[bytes]", Ports]]:
    """Run the program of the proxy, with a limit on its open files, in front of no server."""
    code = "import sys; from stretto.proxy.__main__ import main; sys.exit(main())"
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))  # noqa: E731
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], preexec_fn=limit, **pipes) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(proxy_config().to_json().encode() + b"\n")
        running.stdin.flush()
        try:
            yield running, Ports.from_json(running.stdout.readline().decode())
            running.stdin.write(f"{STOPPING}\n".encode())
        finally:
            running.stdin.close()
            running.wait()


@pytest.mark.slow
async def test_idle_connections_beyond_the_file_limit_block_no_call() -> None:
    """400 connections to a process that may open 256 files."""
    with process(256) as (running, ports), ExitStack() as stack:
        for _ in range(400):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", ports.grpc), None, ("127.0.0.2", 0)))
            client.sendall(HELLO)
        address = f"127.0.0.1:{ports.grpc}"
        for _ in range(3):
            response = await call(address, "ServerReady", service_pb2.ServerReadyRequest())
            assert not response.ready, "the launcher has not reported it as ready"
        for port in (ports.http, ports.metrics):
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), None, ("127.0.0.2", 0)))
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /health/live HTTP/1.1\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 ")
                writer.close()
        with socket.create_connection(("127.0.0.1", ports.grpc)) as client:
            client.sendall(HELLO)
            assert client.recv(9), "new connections are accepted"
        assert running.stderr is not None
        assert running.stderr.readline().startswith(b"[proxy] at most 144 gRPC connections instead of 8192")
    assert running.returncode == 0
