"""Measure what input that is cheap to send costs the gateway: processor seconds per megabyte, by kind of input.

    python -m benchmarks.gateway_input --seconds 5

Each kind is sent to a new gateway for some seconds over one connection. If the gateway closes it, another one is
opened. Meanwhile, a second client requests `/health/live`. No server runs behind the gateway, because none of the input
is a valid request for speech. `megabytes` is the amount that the gateway read. `megabytes_sent` is the amount that the
kernel accepted from the sender. It is larger if the gateway is busy, throttles its reads, or has closed the connection.
"""

import asyncio
import contextlib
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.front_ends import gateway
from benchmarks.harness import append_result, command_line

MEGABYTE = 1_000_000
START_S = 60.0
POLL_S = 0.05  # between two requests for /health/live
KEY = b"AAAAAAAAAAAAAAAAAAAAAA=="
MASK = b"\0\0\0\0"  # leaves the payload unchanged
JSON = b"content-type: application/json\r\n"
FORM = b"content-type: multipart/form-data; boundary=b\r\n"


@dataclass(frozen=True, slots=True)
class Flood:
    """One kind of input.

    Attributes:
        head: Bytes sent first on each connection.
        again: Bytes repeated for as long as the connection accepts them.
        piece: Number of bytes per write; None for as many as the kernel accepts.
        first: Bytes sent once after the response to an upgrade.
    """

    head: bytes
    again: bytes
    piece: int | None = None
    first: bytes = b""


def upgrade(path: bytes) -> bytes:
    """Return the request that opens a WebSocket at `path`."""
    headers = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    return b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n" + headers + b"sec-websocket-key: " + KEY + b"\r\n\r\n"


def frame(first: int, payload: bytes = b"") -> bytes:
    """Return a masked WebSocket frame of at most 125 bytes; `first` is its first byte (RFC 6455, section 5.2)."""
    return bytes([first, 0x80 | len(payload)]) + MASK + payload


def post(path: bytes, headers: bytes, num_bytes: int | None = None) -> bytes:
    """Return the head of a POST request with `num_bytes` of body, or with a chunked body if None."""
    length = b"transfer-encoding: chunked" if num_bytes is None else b"content-length: %d" % num_bytes
    return b"POST " + path + b" HTTP/1.1\r\nhost: x\r\n" + headers + length + b"\r\n\r\n"


def floods() -> dict[str, Flood]:
    """Return the kinds of input by name."""
    stream = upgrade(b"/v1/audio/speech/stream")
    speech = b"/v1/audio/speech"
    files = b"/v1/audio/transcriptions"
    part = b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\n\r\n'
    return {
        "ws_empty_pings": Flood(stream, frame(0x89)),
        "ws_empty_pongs": Flood(stream, frame(0x8A)),
        "ws_empty_fragments": Flood(stream, frame(0x01) + frame(0x80)),
        "ws_tiny_messages": Flood(stream, frame(0x81, b"{}")),
        "ws_empty_messages": Flood(stream, frame(0x81)),
        "ws_refused_messages": Flood(stream, frame(0x81, b'{"type":"input.text","text":"a"}')),
        "ws_one_byte_writes": Flood(stream, b"a", 1, first=b"\x82\xff" + MEGABYTE.to_bytes(8) + MASK),
        "http_tiny_headers": Flood(b"GET /health/live HTTP/1.1\r\nhost: x\r\n", b"a:\r\n"),
        "http_tiny_chunks": Flood(post(files, FORM), b"1\r\na\r\n"),
        "http_chunk_extensions": Flood(post(speech, JSON), b"1;a=b\r\n \r\n"),
        "http_pipelined": Flood(b"", b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"),
        "http_one_byte_writes": Flood(post(files, FORM, 30 * MEGABYTE), b"a", piece=1),
        "form_empty_parts": Flood(post(files, FORM, 30 * MEGABYTE), part),
        "form_line_ends": Flood(post(files, FORM, 30 * MEGABYTE) + part[:-2], b"\r\n"),
        "form_half_boundaries": Flood(post(files, FORM, 30 * MEGABYTE) + part[:-2], b"\r\n--"),
        "form_part_headers": Flood(post(files, FORM, 30 * MEGABYTE) + b"--b\r\n", b"a:b\r\n"),
        "json_lists": Flood(post(speech, JSON, MEGABYTE) + b'{"x":[', b"[],"),
        "plain_upload": Flood(post(files, FORM, 30 * MEGABYTE) + part[:-2], b"a" * 1000),
    }


def processor_s(pid: int) -> float:
    """Return the processor seconds that all threads of a process have used so far."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def bytes_read(pid: int) -> int:
    """Return how many bytes a process has read from files and sockets."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def send(port: int, flood: Flood, until_s: float) -> tuple[int, bool]:
    """Send over one connection until `until_s` on the monotonic clock.

    Returns:
        The number of bytes sent, and True if the gateway closed the connection.
    """
    num_bytes = 0
    piece = flood.again * max(1, 65_536 // len(flood.again))
    data = memoryview(piece)[: flood.piece]
    with socket.create_connection(("127.0.0.1", port)) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.sendall(flood.head)
        made.settimeout(POLL_S)
        if flood.head.startswith(b"GET /v1/audio"):
            made.settimeout(START_S)
            made.recv(65_536)  # the response to the upgrade
            made.sendall(flood.first)
        made.setblocking(False)
        left = data
        while time.monotonic() < until_s:
            try:
                while made.recv(65_536):
                    pass
                return num_bytes, True  # the end of the response
            except BlockingIOError:
                pass
            except OSError:
                return num_bytes, True
            try:
                sent = made.send(left)
                num_bytes = num_bytes + sent
                left = left[sent:] or data
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:
                return num_bytes, True
    return num_bytes, False


def flood_for(port: int, flood: Flood, seconds: float) -> tuple[int, int]:
    """Send for `seconds`, over one connection at a time; return the bytes sent and the number of connections."""
    until_s = time.monotonic() + seconds
    num_bytes = 0
    num_connections = 0
    while time.monotonic() < until_s:
        num_connections += 1
        with contextlib.suppress(OSError):
            num_bytes += send(port, flood, until_s)[0]
    return num_bytes, num_connections


def ask_live(port: int, until: "asyncio.Future[Any]") -> list[float]:
    """Request /health/live repeatedly until `until` is done; return the duration of each request in seconds."""
    took_s = []
    while not until.done():
        begun_s = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as made:
            made.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            while made.recv(65_536):
                pass
        took_s.append(time.monotonic() - begun_s)
        time.sleep(POLL_S)
    return took_s


async def measure(port: int, pid: int, flood: Flood, seconds: float) -> dict[str, Any]:
    """Measure one kind of input; return the record, with the cost of the /health/live requests subtracted."""
    before_s = processor_s(pid)
    before = bytes_read(pid)
    await asyncio.to_thread(ask_live, port, asyncio.ensure_future(asyncio.sleep(seconds)))
    idle = (processor_s(pid) - before_s) / seconds
    num_idle = (bytes_read(pid) - before) / seconds
    before_s = processor_s(pid)
    begun_s = time.monotonic()
    before = bytes_read(pid)
    flooding = asyncio.ensure_future(asyncio.to_thread(flood_for, port, flood, seconds))
    live_s = await asyncio.to_thread(ask_live, port, flooding)
    num_bytes, num_connections = await flooding
    wall_s = time.monotonic() - begun_s
    took_s = processor_s(pid) - before_s - idle * wall_s
    num_read = bytes_read(pid) - before - num_idle * wall_s
    return {
        "megabytes": round(num_read / MEGABYTE, 3),
        "megabytes_sent": round(num_bytes / MEGABYTE, 3),
        "connections": num_connections,
        "processor_s": round(took_s, 3),
        "processor_s_per_mb": round(took_s / num_read * MEGABYTE, 3),
        "processor_share": round(took_s / wall_s, 3),
        "processor_ms_per_connection": round(1000 * took_s / num_connections, 2),
        "live_ms_max": round(1000 * max(live_s), 1),
    }


def main() -> None:
    """Measure each kind and write a line for it."""
    parser = command_line(
        __doc__,
        "gateway_input",
        seconds=(5.0, "seconds per kind of input"),
        source=(Path, "checkout of another revision to measure instead"),
    )
    parser.add_argument("--kinds", nargs="*", choices=list(floods()), default=list(floods()))
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        with gateway("127.0.0.1:1", arguments.source) as (url, process):
            port = int(url.rpartition(":")[2])
            figures = asyncio.run(measure(port, process.pid, floods()[kind], arguments.seconds))
        source = "" if arguments.source is None else arguments.source.name
        append_result(arguments.out, "gateway_input", {"kind": kind, "source": source} | figures)


if __name__ == "__main__":
    main()
