"""Readiness and metrics over HTTP, for any request."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from stretto.proxy import pages
from stretto.proxy.__main__ import grpc_listener, page_listener
from stretto.proxy.connections import ConnectionLimits
from stretto.proxy.pages import MetricsPage, PageServer, Readiness
from stretto_contract.listening import described
from tests.client.fake_server import FakeServer
from tests.patience import PATIENCE_S, until_async
from tests.ports import free_ports
from tests.proxy.conftest import proxy_config

Ask = Callable[[bytes], Awaitable[bytes]]


async def asking(server: PageServer, port: int = 0) -> AsyncIterator[Ask]:
    listener = await asyncio.start_server(server, "127.0.0.1", port, limit=pages.MAX_HEAD_BYTES)
    port = listener.sockets[0].getsockname()[1]

    async def ask(request: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""
            finally:
                writer.close()

    yield ask
    listener.close()


@pytest.fixture
async def triton() -> AsyncIterator[FakeServer]:
    server = FakeServer(lambda _: [])
    server.address = await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def ask(triton: FakeServer) -> AsyncIterator[Ask]:
    async with grpc.aio.insecure_channel(triton.address) as channel:
        async for each in asking(PageServer(Readiness(channel))):
            yield each


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_proxy_readiness_follows_triton(ask: Ask, triton: FakeServer) -> None:
    assert (await ask(get("/v2/health/ready"))).startswith(b"HTTP/1.1 200 OK\r\n")
    assert (await ask(get("/v2/models/speech/ready"))).startswith(b"HTTP/1.1 200 OK\r\n")
    assert (await ask(get("/v2/models/other/ready"))).startswith(b"HTTP/1.1 503 ")
    triton.is_ready = False
    assert (await ask(get("/v2/models/speech/ready"))).startswith(b"HTTP/1.1 503 ")
    await triton.stop()
    assert (await ask(get("/v2/health/ready"))).startswith(b"HTTP/1.1 503 ")


async def test_launcher_faults_override_triton_readiness(triton: FakeServer) -> None:
    async with grpc.aio.insecure_channel(triton.address) as channel:
        async for ask in asking(PageServer(Readiness(channel, lambda: False))):
            for path in ("/v2/health/ready", "/v2/models/speech/ready"):
                assert (await ask(get(path))).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /v2/models/preprocessor/infer HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", b"405"),
        (b"POST /v2/logging HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[[[[[\r\n", b"405"),
        (get("/v2/repository/index"), b"404"),
        (get("/v2/systemsharedmemory/status"), b"404"),
        (get("/v2/models/" + "x" * 500 + "/ready"), b"404"),
        (get("/" + "x" * 100_000), b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b"400"),
        (b"\0" * 100 + b"\r\n\r\n", b"400"),
        (b"GET /v2/health/ready\r\n\r\n", b"400"),
        (b"GET  HTTP/1.1\r\n\r\n", b"404"),
    ],
)
async def test_unsupported_http_requests_are_refused(ask: Ask, request_bytes: bytes, status: bytes) -> None:
    answer = await ask(request_bytes)
    assert answer.split(b" ")[1:2] in ([status], [])  # a client that still sends may see a reset instead
    if len(request_bytes) < pages.MAX_HEAD_BYTES:
        assert b'{"error": "' in answer
    assert (await ask(get("/v2/health/ready"))).startswith(b"HTTP/1.1 200 ")


async def test_incomplete_http_request_is_closed_after_a_timeout(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "REQUEST_S", 0.1)
    assert await ask(b"GET /v2/health/ready HT") == b""


async def test_oldest_idle_connections_are_closed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "REQUEST_S", 10 * PATIENCE_S)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def page(path: str) -> pages.Page:
        if path == "/slow":
            asked.set()
            await answer.wait()
        return pages.Page(pages.HTTPStatus.OK)

    (port,) = free_ports(1)
    async for ask in asking(PageServer(page, 3), port):
        slow = asyncio.create_task(ask(get("/slow")))
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        assert (await ask(get("/"))).startswith(b"HTTP/1.1 200 ")
        async with asyncio.timeout(PATIENCE_S):
            for reader, _ in idle[:-2]:
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
        assert not idle[-1][0].at_eof()
        answer.set()
        assert (await slow).startswith(b"HTTP/1.1 200 ")
        for _, writer in idle:
            writer.close()


async def test_connection_age_counts_from_its_last_response(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("REQUEST_S", "LINGER_S"):
        monkeypatch.setattr(pages, limit, 10 * PATIENCE_S)

    async def page(path: str) -> pages.Page:
        return pages.Page(pages.HTTPStatus.OK)

    def open_ports() -> set[int]:
        return {each.writer.get_extra_info("peername")[1] for each in server._open}

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        own = writer.get_extra_info("sockname")[1]
        await until_async(lambda: own in open_ports())
        return reader, writer, own

    server, (port,) = PageServer(page, 2), free_ports(1)
    async for _ in asking(server, port):
        first, second = await connect(), await connect()
        first[1].write(get("/"))
        assert (await first[0].read()).startswith(b"HTTP/1.1 200 ")
        third = await connect()
        assert open_ports() == {first[2], third[2]}
        for _, writer, _ in (first, second, third):
            writer.close()


async def test_host_with_most_connections_loses_one_even_if_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pages, "REQUEST_S", 10 * PATIENCE_S)
    num_asked, num_ended = 0, 0

    async def page(path: str) -> pages.Page:
        nonlocal num_asked, num_ended
        if path == "/slow":
            num_asked += 1
            try:
                await asyncio.Event().wait()
            finally:
                num_ended += 1
        return pages.Page(pages.HTTPStatus.OK)

    (port,) = free_ports(1)
    async for ask in asking(PageServer(page, 4), port):
        silent = await asyncio.open_connection("127.0.0.1", port)
        theirs = []
        async with asyncio.timeout(PATIENCE_S):
            for number in range(1, 4):
                theirs.append(await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)))
                theirs[-1][1].write(get("/slow"))
                while num_asked < number:
                    await asyncio.sleep(0.001)
            assert (await ask(get("/"))).startswith(b"HTTP/1.1 200 ")
            while num_ended < 1:
                await asyncio.sleep(0.001)
            assert await theirs[0][0].read() == b""
        assert not silent[0].at_eof()
        for _, writer in [silent, *theirs]:
            writer.close()


async def test_excess_connections_are_closed_while_all_are_busy() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def page(path: str) -> pages.Page:
        asked.set()
        await answer.wait()
        return pages.Page(pages.HTTPStatus.OK)

    async for ask in asking(PageServer(page, 1)):
        first = asyncio.create_task(ask(get("/")))
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        assert await ask(get("/")) == b""
        answer.set()
        assert (await first).startswith(b"HTTP/1.1 200 ")
        assert (await ask(get("/"))).startswith(b"HTTP/1.1 200 ")


async def test_metrics_are_forwarded_from_triton(tmp_path: Path) -> None:
    async def metrics(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /metrics HTTP/1.0")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nnv_ 1")
        writer.close()

    path = tmp_path / "metrics"
    async for ask in asking(PageServer(MetricsPage(str(path)))):
        assert (await ask(get("/metrics"))).startswith(b"HTTP/1.1 503 ")
        async with await asyncio.start_unix_server(metrics, path):
            assert (await ask(get("/metrics"))).endswith(b"\r\n\r\nnv_ 1")
            assert (await ask(get("/other"))).startswith(b"HTTP/1.1 404 ")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")
@pytest.mark.parametrize(
    ("address", "hosts"),
    [("::", ("127.0.0.1", "::1")), ("::1", ("::1",)), ("0.0.0.0", ("127.0.0.1",)), ("127.0.0.1", ("127.0.0.1",))],
)
async def test_every_port_of_the_proxy_listens_at_the_same_addresses(address: str, hosts: tuple[str, ...]) -> None:
    config = replace(proxy_config(), address=address)
    grpc_server, grpc_port = grpc_listener(config)
    await grpc_server.start()
    pages_server = await page_listener(config, 0, MetricsPage("/no/metrics"), ConnectionLimits())
    for host in ("127.0.0.1", "::1"):
        assert await is_open(host, pages_server.sockets[0].getsockname()[1]) == (host in hosts)
        # gRPC listens at 0.0.0.0 as at ::, which `described` says
        assert await is_open(host, grpc_port) == (host in hosts or "also" in described(address))
    pages_server.close()
    await grpc_server.stop(0)


async def is_open(host: str, port: int) -> bool:
    """Return True if a port accepts a connection."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def test_taken_port_of_a_page_is_reported_with_the_reason() -> None:
    config = proxy_config()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use"):
            await page_listener(config, port, MetricsPage("/no/metrics"), ConnectionLimits())
