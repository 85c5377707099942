"""TCP proxy that records all traffic and extracts the requests from it."""

import asyncio
import hashlib
import json
import re
import ssl
from contextlib import suppress
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

# Fields that differ between machines or runs.
VARYING = {"host", "content-length", "connection", "sec-websocket-key", "traceparent", "x-request-id", "keep-alive"}

RECORDING = "data:audio/wav;base64,…"  # kept instead of a recording in a field of JSON


class RecordingProxy:
    """Server that forwards connections to `host:port` and records the bytes of both directions.

    Args:
        certificate: File with a key and a certificate, for clients that always use TLS; None for plain HTTP.
    """

    def __init__(self, url: str, certificate: Path | None = None):
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._passed: list[tuple[bytearray, bytearray]] = []
        self._open: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)

    async def start(self) -> str:
        """Start the proxy and return its URL."""
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=self._tls)
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Stop the proxy once all open connections have ended."""
        self._server.close()
        await asyncio.gather(*self._open)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        kept = (bytearray(), bytearray())
        self._passed.append(kept)
        with suppress(ConnectionError):
            back, forth = await asyncio.open_connection(self._host, self._port)
            await asyncio.gather(_copy(reader, forth, kept[0]), _copy(back, writer, kept[1]))

    def traffic(self) -> list[tuple[bytes, bytes]]:
        """Return the bytes of each connection: those that the client has sent, and those that it got."""
        return [(bytes(sent), bytes(got)) for sent, got in self._passed]

    def requests(self) -> list[dict[str, Any]]:
        """Return the distinct requests in a fixed order, each with its response's status and content type."""
        found = [request for sent, answered in self.traffic() for request in _read(sent, answered)]
        different = {json.dumps(request, sort_keys=True): request for request in found}
        return [different[key] for key in sorted(different)]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            kept += data
            writer.write(data)
            await writer.drain()
    with suppress(ConnectionError, OSError):
        writer.close()


def _read(sent: bytes, answered: bytes) -> list[dict[str, Any]]:
    """Return the requests on a connection, excluding a truncated one."""
    caller, server = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)
    caller.receive_data(sent)
    server.receive_data(answered)
    requests = []
    with suppress(h11.ProtocolError):
        while isinstance(head := caller.next_event(), h11.Request):
            server.send(head)
            if any(name == b"upgrade" for name, _ in head.headers):
                answer = server.next_event()
                request = _request(head, b"", answer)
                if isinstance(answer, h11.InformationalResponse):
                    request["messages"] = _messages(caller, answer)
                return [*requests, request]
            body = bytearray()
            while isinstance(part := caller.next_event(), h11.Data):
                body += part.data
            server.send(h11.EndOfMessage()) if not body else server.send(h11.Data(bytes(body)))
            if body:
                server.send(h11.EndOfMessage())
            answer = server.next_event()
            requests.append(_request(head, bytes(body), answer))
            while not isinstance(server.next_event(), h11.EndOfMessage | h11.ConnectionClosed | type(h11.NEED_DATA)):
                pass
            caller.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            caller.send(h11.EndOfMessage())
            caller.start_next_cycle()
            server.start_next_cycle()
    return requests


def _request(head: h11.Request, body: bytes, answer: Any) -> dict[str, Any]:
    headers = {name.decode(): value.decode() for name, value in head.headers}
    form = headers.get("content-type", "")
    steady = {
        name: value
        for name, value in headers.items()
        if name not in VARYING and not name.startswith(("x-stainless", "x-fern"))
    }
    request: dict[str, Any] = {"method": head.method.decode(), "target": head.target.decode(), "headers": steady}
    if form.startswith("multipart/form-data"):
        steady["content-type"] = "multipart/form-data"
        request["parts"] = _parts(form, body)
    elif body:
        request["json"] = json.loads(body)
        if "ref_audio" in request["json"]:
            request["json"]["ref_audio"] = RECORDING
    if isinstance(answer, h11.Response | h11.InformationalResponse):
        request["status"] = answer.status_code
        request["answer"] = dict(answer.headers).get(b"content-type", b"").decode().split(";")[0]
    return request


def _parts(form: str, body: bytes) -> list[dict[str, str]]:
    """Return the fields of a form; a file is described by its first bytes."""
    message = BytesParser(policy=HTTP).parsebytes(f"content-type: {form}\r\n\r\n".encode() + body)
    parts = []
    for part in message.iter_parts():
        data = part.get_payload(decode=True)
        known = {"name": part.get_param("name", header="content-disposition")}
        if part.get_filename() is None:
            parts.append(known | {"value": data.decode()})
            continue
        kinds = {b"RIFF": "wav", b"\x1aE\xdf\xa3": "webm", b"ID3": "mp3", b"\xff": "mp3", b"OggS": "ogg"}
        kind = next((kind for mark, kind in kinds.items() if data.startswith(mark)), hashlib.sha256(data).hexdigest())
        # A name that is made up anew for each upload is kept by its end.
        name = re.sub(r"^[0-9a-f-]{36}", "upload", part.get_filename())
        parts.append(known | {"filename": name, "type": str(part.get("content-type", "")), "file": kind})
    return parts


def _messages(caller: h11.Connection, answer: h11.InformationalResponse) -> list[dict[str, Any]]:
    """Return a client's messages on a WebSocket without audio; consecutive appends of audio are listed once."""
    sent, _ = caller.trailing_data
    deflates = b"sec-websocket-extensions" in dict(answer.headers)
    protocol = ServerProtocol(state=State.OPEN, max_size=None)
    protocol.extensions = [PerMessageDeflate(False, False, 15, 15)] if deflates else []
    with suppress(Exception):
        protocol.receive_data(sent)
    messages: list[dict[str, Any]] = []
    text = bytearray()
    for frame in protocol.events_received():
        if frame.opcode in (Opcode.TEXT, Opcode.CONT):  # type: ignore[union-attr]
            text += frame.data  # type: ignore[union-attr]
            if frame.fin:  # type: ignore[union-attr]
                message = json.loads(bytes(text))
                text.clear()
                message.pop("event_id", None)
                if message.get("type") == "input_audio_buffer.append":
                    message["audio"] = "…"
                if "context_id" in message:
                    message["context_id"] = "…"
                if not any(message.get(name) for name in message if name != "context_id"):
                    continue  # keeps the connection open, after a time
                if not messages or messages[-1] != message:
                    messages.append(message)
    return messages
