"""HTTP requests, byte by byte, to all gateway endpoints and to the server's own HTTP port."""

import asyncio
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.server.fuzzing.doors import ANSWER_S, Doors, Sent, wrong_words
from tests.server.fuzzing.mutations import NUMBERS, TEXTS, as_json, flipped, varied

SPEECH: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "a cat", "seed": 1, "max_audio_s": 0.24}
BODIES: dict[str, tuple[dict[str, Any], ...]] = {
    "/v1/audio/speech": (
        SPEECH | {"response_format": "pcm", "sample_rate": 16_000},
        SPEECH | {"response_format": "mp3", "speed": 1.0},
        SPEECH | {"response_format": "wav", "stream_format": "sse", "timestamps": True},
        SPEECH | {"response_format": "flac", "voice": {"id": "heart"}, "guidance": {"scale": 2.0, "policy": "always"}},
        SPEECH | {"response_format": "opus", "audio": {"temperature": 0.5, "top_k": 4}, "chunking": {"playout_s": 0.1}},
    ),
    "/v1/audio/speech/batch": ({**SPEECH, "items": [{"input": "a cat"}, {"input": "sat", "voice": "nova"}]},),
    "/v1/chat/completions": (
        {
            "model": "gpt-audio",
            "modalities": ["text", "audio"],
            "audio": {"voice": "alloy", "format": "wav"},
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
            "stream": False,
        },
    ),
}
for _body in BODIES["/v1/audio/speech/batch"]:
    _body.pop("input")
PAGES = (
    "/v1/models",
    "/v1/models/tiny",
    "/v1/audio/voices",
    "/health/ready",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/",
)
PATHS = (*BODIES, *PAGES, "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/realtime")
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "get", "", "A" * 300, "G\0T")
HEADERS = (
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Content-Length: 5\r\nContent-Length: 6",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: x",
    "Content-Type: text/plain",
    "Content-Type: application/json; charset=utf-7",
    "Content-Type: multipart/form-data",
    "Content-Type: \xff",
    "Content-Encoding: gzip",
    "Expect: 100-continue",
    "Origin: null",
    "Origin: http://[",
    "Authorization: Bearer",
    "Accept: " + "a" * 3000,
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 99\r\nSec-WebSocket-Key: x",
    "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings",
    "Host: \0",
    "traceparent: 00-" + "f" * 200,
    "Range: bytes=0-,1-,-1",
    " folded: header",
    ": nameless",
)
SERVER_PATHS = ("/v2/health/live", "/v2/health/ready", "/v2/models/speech/ready", "/v2/models/speech/infer", "/metrics")
REFUSED = {400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 426, 429, 431}
BOUNDARY = "x7f"
RATE = 16_000
LEFT_S = 0.3  # an incomplete request is answered by then, or never
Parts = list[tuple[str, bytes]]


@dataclass(slots=True)
class Request:
    """Request to be mutated. `is_whole` is True if nothing has been cut off, so that it gets a response."""

    method: str
    path: str
    headers: list[str]
    body: bytes = b""
    is_whole: bool = True

    def encoded(self) -> bytes:
        """Return the bytes on the wire."""
        head = "\r\n".join([f"{self.method} {self.path} HTTP/1.1", *self.headers])
        return head.encode("latin-1", errors="replace") + b"\r\n\r\n" + self.body


def make_request(draw: Random) -> Sent:
    """Return a mutated request to the gateway or, sometimes, to the server's own port."""
    if draw.random() < 0.15:
        request, port = _page(draw, SERVER_PATHS), "http_port"
    else:
        request, port = draw.choice((_spoken, _spoken, _recorded, _brought, _page))(draw), "gateway_port"
    what = ["HTTP", port, request.method, request.path]
    for _ in range(draw.choices((0, 1, 2), (3, 2, 1))[0]):
        mutate = draw.choice(MUTATIONS)
        what.append(mutate.__name__.lstrip("_"))
        mutate(request, draw)
    data, is_whole = request.encoded(), request.is_whole
    if draw.random() < 0.08:
        data, is_whole = flipped(data, draw), False
        what.append("bytes")
    return Sent(" ".join(what)[:200], lambda doors: _ask(doors, getattr(doors, port), data, is_whole))


def _sized(method: str, path: str, kind: str, body: bytes) -> Request:
    head = ["Host: localhost", "Connection: close", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return Request(method, path, head, body)


def _spoken(draw: Random) -> Request:
    path = draw.choice(list(BODIES))
    record: Any = draw.choice(BODIES[path])
    for _ in range(draw.choices((0, 1, 2, 3), (1, 6, 3, 1))[0]):
        record = varied(record, draw)
    return _sized("POST", path, "application/json", as_json(record, draw))


def _form(path: str, parts: Parts, draw: Random) -> Request:
    match draw.randrange(5):
        case 0 if parts:
            del parts[draw.randrange(len(parts))]
        case 1:
            parts.append(draw.choice(parts))
        case 2:
            place = draw.randrange(len(parts))
            parts[place] = parts[place][0], draw.choice((*TEXTS, *map(str, NUMBERS))).encode(errors="surrogatepass")
        case 3:
            place = draw.randrange(len(parts))
            parts[place] = parts[place][0], flipped(parts[place][1], draw)
    lines = b"".join(
        b"--%s\r\nContent-Disposition: form-data; name=%s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), name.encode(), value)
        for name, value in parts
    )
    return _sized("POST", path, f"multipart/form-data; boundary={BOUNDARY}", lines + f"--{BOUNDARY}--\r\n".encode())


def _wav(draw: Random) -> bytes:
    size = draw.randrange(0, 8000, 2)
    head = (
        b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data"
    )
    return head + size.to_bytes(4, "little") + draw.randbytes(size)


def _recorded(draw: Random) -> Request:
    path = draw.choice(("/v1/audio/transcriptions", "/v1/audio/transcriptions", "/v1/audio/translations"))
    kind = draw.choice((b"json", b"text", b"srt", b"vtt", b"verbose_json"))
    parts = [("model", b"whisper-1"), ('file; filename="a.wav"', _wav(draw)), ("response_format", kind)]
    return _form(path, parts + [("stream", b"true")] * (draw.random() < 0.3) + [("temperature", b"0.2")], draw)


def _brought(draw: Random) -> Request:
    parts = [("name", b"mine"), ("consent", b"my own"), ('audio_sample; filename="a.wav"', _wav(draw))]
    return _form("/v1/audio/voices", [*parts, ("ref_text", b"a cat")], draw)


def _page(draw: Random, paths: tuple[str, ...] = PAGES) -> Request:
    return Request("GET", draw.choice(paths), ["Host: localhost", "Connection: close"])


def _remethod(request: Request, draw: Random) -> None:
    request.method = draw.choice(METHODS)


def _repath(request: Request, draw: Random) -> None:
    odd = ("/%00", "/%ff%fe", "/..%2f..%2fx", "//", "/v1/models/" + "a" * 3000, "/v1/audio/voices/%ud800", "*", "x")
    request.path = draw.choice((*PATHS, *odd)) + draw.choice(("", "?", "?a=%ff&a", "?model=" + "b" * 3000, "#", ";x"))


def _add_header(request: Request, draw: Random) -> None:
    place = draw.randrange(len(request.headers) + 1)
    request.headers.insert(place, draw.choice(HEADERS))
    request.is_whole = False  # its body may no longer match it


def _drop_header(request: Request, draw: Random) -> None:
    if request.headers:
        del request.headers[draw.randrange(len(request.headers))]
        request.is_whole = False


def _cut(request: Request, draw: Random) -> None:
    request.body = request.body[: draw.randrange(len(request.body) + 1)]
    request.is_whole = False


def _spoil(request: Request, draw: Random) -> None:
    """Replace the body with other bytes of the announced length."""
    request.body = flipped(request.body, draw)
    request.headers = [line for line in request.headers if not line.startswith("Content-Length")]
    request.headers.append(f"Content-Length: {len(request.body)}")


MUTATIONS = (_remethod, _repath, _add_header, _add_header, _drop_header, _cut, _spoil, _spoil)


async def _ask(doors: Doors, port: int, data: bytes, is_whole: bool) -> list[str]:
    try:
        async with asyncio.timeout(ANSWER_S):
            answer = await _answer(port, data, is_whole)
    except TimeoutError:
        return [f"no answer within {ANSWER_S:g} s"]
    if not answer:
        return ["no answer to a whole request"] if is_whole else []
    doors.answers["HTTP answered" if answer.partition(b" ")[2].startswith(b"2") else "HTTP refused"] += 1
    return _wrong(answer)


async def _answer(port: int, data: bytes, is_whole: bool) -> bytes:
    """Read until the connection ends; after an incomplete request, the sender ends it after a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = bytearray()

    async def read() -> None:
        with suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                answer.extend(part)

    writer.write(data)
    reading = asyncio.create_task(read())
    try:
        if not is_whole:
            await asyncio.wait([reading], timeout=LEFT_S)
            writer.write_eof()
        await reading
    finally:
        reading.cancel()
        writer.close()
    return bytes(answer)


def _wrong(answer: bytes) -> list[str]:
    """Return the problems of a response: its status, and an error's message."""
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    if not found:
        return [f"no answer of HTTP: {answer[:100]!r}"]
    status, (head, _, body) = int(found[1]), answer.partition(b"\r\n\r\n")
    if status < 400:
        return [] if b"\r\n\r\n" in answer else [f"an answer without an end of its head: {answer[:100]!r}"]
    if status not in REFUSED:
        return [f"status {status}: {body[:300]!r}"]
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    body = body[: int(length[1])] if length else body  # another answer may follow it
    if b"application/json" not in head.lower() or not body:  # HEAD
        return wrong_words(body.decode(errors="replace")) if body else []
    told = json.loads(body)["error"]
    return wrong_words(told if isinstance(told, str) else told["message"])
