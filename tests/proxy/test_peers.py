"""Client hosts of calls, and calls of hosts that do not read or that reset what they send."""

import asyncio
import socket
import struct
from contextlib import ExitStack

import pytest

from stretto.proxy import __main__ as proxy_main
from stretto.proxy import grpc_proxy
from stretto.proxy.access import host_of_call
from tests.proxy.conftest import Proxied, proxied
from tests.proxy.test_grpc_proxy import call, service_pb2

DATA, HEADERS, RESET, SETTINGS, PING = 0, 1, 3, 4, 6  # frames of HTTP/2 (RFC 9113, section 6)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CANCEL = struct.pack(">I", 8)


def test_host_of_a_call_is_the_network_of_its_peer() -> None:
    assert host_of_call("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5000") == "2001:db8:1:2::/64"
    assert host_of_call("unix:/a/socket") == "unix:/a/socket"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def head(**fields: str) -> bytes:
    """Header fields as literals (RFC 7541, section 6.2.2)."""
    words = [(name.replace("__", ":").replace("_", "-"), value) for name, value in fields.items()]
    return b"".join(b"\0" + bytes([len(name)]) + name.encode() + bytes([len(of)]) + of.encode() for name, of in words)


BEGIN = head(
    __method="POST",
    __scheme="http",
    __path="/inference.GRPCInferenceService/ServerReady",
    __authority="localhost",
    content_type="application/grpc",
    te="trailers",
)


def until_read(client: socket.socket) -> None:
    """Wait until the server has read all sent data; it acknowledges a final ping without the proxy's help."""
    client.sendall(frame(PING, 0, 0, b"all read"))
    received = b""
    while frame(PING, 1, 0, b"all read") not in received:
        received += client.recv(1 << 16)


async def test_host_that_reads_no_responses_does_not_block_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (grpc_proxy, proxy_main):
        monkeypatch.setattr(module, "MAX_CALLS", 8)
    async for proxy in proxied():
        port = int(proxy.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 60, ("127.0.0.2", 0)) as client:
            no_window = struct.pack(">HI", 4, 0)
            client.sendall(PREFACE + frame(SETTINGS, 0, 0, no_window) + frame(SETTINGS, 1, 0))
            for stream in range(1, 41, 2):
                client.sendall(frame(HEADERS, 4, stream, BEGIN) + frame(DATA, 1, stream, bytes(5)))
            for _ in range(50):
                assert (await call(proxy.address, "ServerReady", service_pb2.ServerReadyRequest())).ready


@pytest.mark.slow
async def test_rapid_reset_from_one_host_cancels_no_other_calls(proxy: Proxied) -> None:
    """The proxy accepts none of them meanwhile, because the test blocks its loop. No timing is involved."""
    port = int(proxy.address.rpartition(":")[2])
    started = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0)
    begun = b"".join(frame(HEADERS, 4, at, BEGIN) + frame(RESET, 0, at, CANCEL) for at in range(1, 4000, 2))
    with ExitStack() as connections:
        for _ in range(4):
            client = connections.enter_context(socket.create_connection(("127.0.0.1", port), None, ("127.0.0.2", 0)))
            client.sendall(started + begun)
            until_read(client)
        other = connections.enter_context(socket.create_connection(("127.0.0.1", port)))
        other.sendall(started + frame(HEADERS, 4, 1, BEGIN) + frame(DATA, 1, 1, bytes(5)))
        until_read(other)
        received = await asyncio.to_thread(frames_of, other, 1)
    assert [kind for kind, _ in received] == [HEADERS, DATA, HEADERS]
    assert received[1][1] == bytes([0, 0, 0, 0, 2]) + service_pb2.ServerReadyResponse(ready=True).SerializeToString()


def frames_of(client: socket.socket, stream: int) -> list[tuple[int, bytes]]:
    """Return the kind and payload of a call's frames, up to the frame that ends it."""
    found, file = [], client.makefile("rb")
    while True:
        header = file.read(9)
        assert header, "the server has closed the connection"
        size, kind, flags, number = int.from_bytes(header[:3]), header[3], header[4], int.from_bytes(header[5:])
        payload = file.read(size)
        if number == stream and kind in (DATA, HEADERS, RESET):
            found.append((kind, payload))
            if kind == RESET or flags & 1:
                return found
