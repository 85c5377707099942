"""The proxy's process: reads a ProxyConfig, a line of JSON, from standard input, and serves until that ends.

It writes one line: LISTENING, or why it cannot listen.
"""

import asyncio
import resource
import signal
import sys

import grpc

from stretto.serving.proxy.access import Access
from stretto.serving.proxy.config import LISTENING, ProxyConfig
from stretto.serving.proxy.grpc_proxy import MAX_CALLS, SERVER_OPTIONS, TRITON_OPTIONS, GrpcProxy
from stretto.serving.proxy.pages import MAX_HEAD_BYTES, MetricsPage, Pages, PageServer, Readiness

STOP_S = 2.0  # for answers that are complete and still on their way


async def serve(config: ProxyConfig, stopped: asyncio.Event) -> None:
    """Listen on all ports until `stopped`; OSError where one cannot be had."""
    async with grpc.aio.insecure_channel(f"unix:{config.triton_grpc}", TRITON_OPTIONS) as triton:
        server = grpc_server(config, triton)
        pages: dict[int, Pages] = {config.metrics_port: MetricsPage(config.triton_metrics)}
        if config.http_port is not None:
            pages[config.http_port] = Readiness(triton)
        listeners = [
            await asyncio.start_server(PageServer(page), config.address, port, limit=MAX_HEAD_BYTES)
            for port, page in pages.items()
        ]
        await server.start()
        print(LISTENING, flush=True)
        await stopped.wait()
        for listener in listeners:
            listener.close()
        await server.stop(STOP_S)


def grpc_server(config: ProxyConfig, triton: grpc.aio.Channel) -> grpc.aio.Server:
    """The gRPC server, not started; OSError where it cannot have its port."""
    options = [*SERVER_OPTIONS, ("grpc.max_receive_message_length", config.max_request_bytes)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers((GrpcProxy(triton, Access(config.key, frozenset(config.allowed))),))
    host = f"[{config.address}]" if ":" in config.address else config.address
    try:
        server.add_insecure_port(f"{host}:{config.grpc_port}")
    except RuntimeError:
        raise OSError(f"cannot listen on {host}:{config.grpc_port}") from None
    return server


async def run(config: ProxyConfig) -> None:
    """Serve until the launcher ends, or says so."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, stopped.set)  # readable: at its end, nothing else comes
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await serve(config, stopped)


def main() -> int:
    """Serve; 1 where a port cannot be had."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file
    config = ProxyConfig.from_json(sys.stdin.readline())
    try:
        asyncio.run(run(config))
    except OSError as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
