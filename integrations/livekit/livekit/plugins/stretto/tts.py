"""Text-to-speech of Stretto's gateway, which reads text as it is written and reports word times."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp
from livekit.agents import APIConnectionError, APIConnectOptions, APIStatusError, APITimeoutError, tts, utils
from livekit.agents._exceptions import create_api_error_from_http
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN, TimedString

# The gateway closes a connection after 300 s without a message, and after an hour.
MAX_CONNECTION_S = 240.0
SETTLE_S = 10.0  # time in which the gateway ends a cancelled utterance
NO_REPORT = {"type", "event_id", "utterance_index", "total_sentences"}  # fields of `session.done`
STATUS = {"authentication_error": 401, "rate_limit_error": 429, "invalid_request_error": 400, "server_error": 500}
PUNCTUATION = re.compile(r"\S*")  # after a word


class TTS(tts.TTS[Literal["speech_done"]]):
    """Speech of a gateway, over reused connections.

    The event `speech_done` has the gateway's report of each utterance, such as `finish_reason` and `faults`.

    Args:
        fields: Fields of a speech request to the gateway: `voice`, `language`, `speed`, `instructions`, `seed`, `check`
            and others.
    """

    def __init__(
        self,
        *,
        base_url: str = "http://localhost:8003/v1",
        api_key: str | None = None,
        sample_rate: int = 24_000,
        http_session: aiohttp.ClientSession | None = None,
        **fields: Any,
    ):
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=True, aligned_transcript=True),
            sample_rate=sample_rate,
            num_channels=1,
        )
        self._url = f"{base_url.replace('http', 'ws', 1).rstrip('/')}/audio/speech/stream"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http_session = http_session
        self._fields = {"model": "tts-1"} | fields
        self._settling: set[asyncio.Task[None]] = set()
        self.pool = utils.ConnectionPool[aiohttp.ClientWebSocketResponse](
            connect_cb=self._connect, close_cb=self._close, max_session_duration=MAX_CONNECTION_S
        )

    @property
    def model(self) -> str:
        return self._fields["model"]

    @property
    def provider(self) -> str:
        return "Stretto"

    @property
    def config(self) -> dict[str, Any]:
        """Settings of an utterance, as the gateway's event."""
        form = {"response_format": "pcm", "sample_rate": self.sample_rate, "timestamps": True}
        return {"type": "session.config"} | self._fields | form

    def update_options(self, **fields: Any) -> None:
        """Replace fields, from the next utterance on."""
        self._fields |= fields

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return self._synthesize_with_stream(text, conn_options=conn_options)

    def stream(self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS) -> "SynthesizeStream":
        return SynthesizeStream(tts=self, conn_options=conn_options)

    def prewarm(self) -> None:
        self.pool.prewarm()

    async def aclose(self) -> None:
        await utils.aio.cancel_and_wait(*self._settling)
        await self.pool.aclose()

    async def _connect(self, timeout_s: float) -> aiohttp.ClientWebSocketResponse:
        session = self._http_session or utils.http_context.http_session()
        try:
            return await asyncio.wait_for(
                session.ws_connect(self._url, headers=self._headers, max_msg_size=0), timeout_s
            )
        except TimeoutError:
            raise APITimeoutError(f"no connection to {self._url} within {timeout_s:g} s") from None
        except aiohttp.WSServerHandshakeError as error:
            raise create_api_error_from_http(error.message, status=error.status) from error
        except aiohttp.ClientError as error:
            raise APIConnectionError(f"cannot connect to {self._url}") from error

    async def _close(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.close()

    @asynccontextmanager
    async def connection(self, timeout_s: float) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Yield a connection. After a cancellation, stop the utterance on the server, and reuse the connection."""
        socket = await self.pool.get(timeout=timeout_s)
        try:
            yield socket
        except asyncio.CancelledError:
            task = asyncio.create_task(self._settle(socket))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)
            raise
        except ConnectionError as error:
            self.pool.remove(socket)
            raise APIConnectionError(f"{self._url} closed the connection") from error
        except BaseException:
            self.pool.remove(socket)
            raise
        self.pool.put(socket)

    async def _settle(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            async with asyncio.timeout(SETTLE_S):
                await socket.send_json({"type": "input.cancel"})
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT and message.json()["type"] == "session.done":
                        self.pool.put(socket)
                        return
        except (TimeoutError, aiohttp.ClientError, ConnectionError):
            pass
        self.pool.remove(socket)


class Words:
    """Words of an utterance as parts of its text, with the punctuation and spaces between them."""

    def __init__(self) -> None:
        self.text = ""
        self._num_told = 0

    def timed(self, words: list[dict[str, Any]]) -> list[TimedString]:
        """Return the parts of the text up to each word. Words that are not in the text are left out."""
        parts = []
        for word in words:
            if word.get("text_end", 0) > self._num_told:
                end = PUNCTUATION.match(self.text, word["text_end"]).end()
                parts.append(TimedString(self.text[self._num_told : end], word["start"], word.get("end", NOT_GIVEN)))
                self._num_told = end
        return parts

    def remaining(self) -> list[TimedString]:
        """Return the text after the last word."""
        return [TimedString(self.text[self._num_told :])] if self._num_told < len(self.text) else []


class SynthesizeStream(tts.SynthesizeStream):
    """One utterance, spoken while its text is pushed."""

    _tts: TTS

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid(),
            sample_rate=self._tts.sample_rate,
            num_channels=1,
            mime_type="audio/pcm",
            stream=True,
        )
        text = await self._next_text()
        while text is not None and not (text := text.lstrip()):
            text = await self._next_text()
        if text is None:
            return
        async with self._tts.connection(self._conn_options.timeout) as socket:
            self._acquire_time = self._tts.pool.last_acquire_time
            self._connection_reused = self._tts.pool.last_connection_reused
            words = Words()
            await socket.send_json(self._tts.config)
            writing = asyncio.create_task(self._write(socket, text, words))
            try:
                await self._read(socket, output_emitter, words)
            finally:
                await utils.aio.cancel_and_wait(writing)

    async def _next_text(self) -> str | None:
        """Return the next text; None after the last one."""
        try:
            piece = await self._input_ch.recv()
        except utils.aio.ChanClosed:
            return None
        return piece if isinstance(piece, str) else None

    async def _write(self, socket: aiohttp.ClientWebSocketResponse, text: str | None, words: Words) -> None:
        self._mark_started()
        while text is not None:
            words.text += text
            await socket.send_json({"type": "input.text", "text": text})
            text = await self._next_text()
        await socket.send_json({"type": "input.done"})

    async def _read(
        self, socket: aiohttp.ClientWebSocketResponse, output_emitter: tts.AudioEmitter, words: Words
    ) -> None:
        """Pass audio and words on until the utterance ends; raise APIError if it fails."""
        output_emitter.start_segment(segment_id=utils.shortuuid())
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                output_emitter.push(message.data)
                continue
            event = message.json()
            match event["type"]:
                case "audio.words":
                    output_emitter.push_timed_transcript(words.timed(event["words"]))
                case "session.done":
                    output_emitter.push_timed_transcript(words.remaining())
                    output_emitter.end_segment()
                    self._tts.emit("speech_done", {name: event[name] for name in event.keys() - NO_REPORT})
                    return
                case "error":
                    status = STATUS.get(event["error"]["type"], -1)
                    raise APIStatusError(event["message"], status_code=status, body=event["error"])
        raise APIConnectionError(f"{self._tts._url} closed the connection (code {socket.close_code})")
