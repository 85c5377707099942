"""Program of the proxy process.

It reads a ProxyConfig (one line of JSON) and then state messages from standard input, and serves until standard input
is closed. On standard output, it first writes one line with its ports (`Ports`), or with the reason why it cannot
listen. Later it writes a line for each model that Triton reports as unhealthy, and when the server is idle or a request
wakes it.
"""

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import grpc

from stretto.disconnects import Disconnects
from stretto.proxy.access import Access, OurModels
from stretto.proxy.connections import ConnectionLimits, Connections
from stretto.proxy.grpc_proxy import MAX_CALLS, SERVER_OPTIONS, TRITON_OPTIONS, GrpcProxy, LauncherState
from stretto.proxy.http_infer import HttpInfer
from stretto.proxy.messages import ENDING_ALL, ENDING_UNANSWERED, READY, STOPPING, Ports, ProxyConfig
from stretto.proxy.pages import MAX_HEAD_BYTES, MetricsPage, Pages, PageServer, Posts, Readiness
from stretto.proxy.sleep import Sleep
from stretto.proxy.triton_stream import CallGate, Uploads
from stretto_contract.heartbeat import beat
from stretto_contract.listening import listen, place

STOP_S = 2.0  # time for complete responses to reach their clients


class LauncherConnection:
    """Connection to the launcher through standard input and output.

    Args:
        idle_s: Time without a request after which the server falls asleep; 0 for never.

    Attributes:
        stopped: Set when standard input is closed or a signal requests a stop.
        has_died: True if standard input was closed without the message STOPPING.
    """

    def __init__(self, idle_s: float = 0.0) -> None:
        self.stopped = asyncio.Event()
        self.gate = CallGate(self.report_dead_stub)
        self.sleep = Sleep(idle_s, partial(print, flush=True))
        self._partial_line = b""
        self._is_ready = self._has_reported = self._is_stopping = False
        self.has_died = False

    def is_ready(self) -> bool:
        """Return True if the server is ready according to the launcher's last message."""
        return self._is_ready

    def report_dead_stub(self, model: str) -> None:
        """Report to the launcher that Triton considers the stub of `model` dead.

        Only the first report after each message of the launcher is sent, and none while models are restarted.
        """
        if not self.gate.is_closed and not self._has_reported:
            self._has_reported = True
            print(model, flush=True)

    def read_commands(self) -> None:
        """Read and apply the messages that have arrived on standard input."""
        came = os.read(0, 4096)
        if not came:
            self.has_died = not self._is_stopping
            self.stopped.set()
        *lines, self._partial_line = (self._partial_line + came).split(b"\n")
        for line in lines:
            self._apply(line.decode())

    def _apply(self, line: str) -> None:
        self._is_ready = line == READY
        self._has_reported = False
        self._is_stopping = line == STOPPING
        self.sleep.apply(line)
        if line in (ENDING_ALL, ENDING_UNANSWERED):
            self.gate.close(spares_answered=line == ENDING_UNANSWERED)
        else:
            self.gate.open()


async def serve(config: ProxyConfig, launcher: LauncherConnection, limits: ConnectionLimits) -> None:
    server, grpc_port = grpc_listener(config)
    connections = Connections(limits, config.address)
    async with grpc.aio.insecure_channel(f"unix:{config.triton_grpc}:{grpc_port}", TRITON_OPTIONS) as triton:
        uploads = Uploads()
        proxy = grpc_proxy(config, triton, launcher, uploads, connections)
        server.add_generic_rpc_handlers((proxy,))
        metrics = MetricsPage(config.triton_metrics, launcher.sleep)
        listeners = [await page_listener(config, config.metrics_port, metrics, limits)]
        if config.http_port is not None:
            readiness = Readiness(triton, launcher.is_ready, launcher.sleep)
            posts = HttpInfer(proxy.infer, uploads, launcher.gate.report_dead_stub) if config.cloning_models else None
            listeners.append(await page_listener(config, config.http_port, readiness, limits, posts))
        await server.start()
        metrics_port, *http_port = (listener.sockets[0].getsockname()[1] for listener in listeners)
        print(Ports(grpc_port, metrics_port, *http_port).to_json(), flush=True)
        watchers = [
            uploads.watch(),
            connections.watch(grpc_port),
            beat(),
            launcher.sleep.watch(triton, launcher.is_ready),
        ]
        tasks = [asyncio.create_task(watcher) for watcher in watchers]
        await launcher.stopped.wait()
        for task in tasks:
            task.cancel()
        for listener in listeners:
            listener.close()
        await server.stop(STOP_S)


async def page_listener(
    config: ProxyConfig, port: int, page: Pages, limits: ConnectionLimits, posts: Posts | None = None
) -> asyncio.Server:
    """Start an HTTP server for `page` and `posts`; raise OSError if the port is not available."""
    server = PageServer(page, limits.page, posts)
    listener = listen(config.address, port, limits.page)
    return await asyncio.start_server(server, sock=listener, limit=MAX_HEAD_BYTES, backlog=limits.page)


def grpc_listener(config: ProxyConfig) -> tuple[grpc.aio.Server, int]:
    """Return a gRPC server without handlers, and its port; raise OSError if the port is not available."""
    options = [*SERVER_OPTIONS, ("grpc.max_receive_message_length", config.max_request_bytes)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
    where = place(config.address, config.grpc_port)
    try:
        return server, server.add_insecure_port(where)
    except RuntimeError:
        raise OSError(f"cannot listen at {where}") from None


def grpc_proxy(
    config: ProxyConfig,
    triton: grpc.aio.Channel,
    launcher: LauncherState,
    uploads: Uploads,
    connections: Connections,
) -> GrpcProxy:
    """Return the handler for gRPC calls."""
    allowed = Access(config.key, frozenset(config.allowed))
    disconnects = Disconnects(Path(config.disconnects))
    ours = OurModels(frozenset(config.cloning_models))
    return GrpcProxy(triton, allowed, launcher, uploads, disconnects, connections, ours)


async def run(config: ProxyConfig, launcher: LauncherConnection, limits: ConnectionLimits) -> None:
    loop = asyncio.get_running_loop()
    loop.add_reader(0, launcher.read_commands)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, launcher.stopped.set)
    await serve(config, launcher, limits)


def first_line() -> str:
    """Read the first line of standard input, without reading ahead."""
    line = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


def main() -> int:
    """Serve; return 1 if a port is not available.

    If the launcher dies, this process replaces itself with the cleanup command, because it may be the only one left.
    """
    limits = ConnectionLimits.from_system()
    if warning := limits.warning():
        print(warning, file=sys.stderr, flush=True)
    config = ProxyConfig.from_json(first_line())
    launcher = LauncherConnection(config.idle_s)
    try:
        asyncio.run(run(config, launcher, limits))
    except OSError as error:
        print(error.strerror or error, flush=True)
        return 1
    finally:
        if config.cleanup and launcher.has_died:
            os.execv(config.cleanup[0], config.cleanup)
    return 0


if __name__ == "__main__":
    sys.exit(main())
