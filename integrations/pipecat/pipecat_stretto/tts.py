"""Text-to-speech service for Stretto's gateway, which reads text as it is written and reports word times."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from loguru import logger
from pipecat.frames.frames import ErrorFrame, Frame, TTSAudioRawFrame, TTSStoppedFrame
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TextAggregationMode, WebsocketTTSService
from pipecat.utils.errors import ErrorCategory
from pipecat.utils.types import NOT_GIVEN, NotGiven
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

IDLE_S = 60.0  # time without audio after which Pipecat gives up a reply; each reply is ended before that
NO_REPORT = {"type", "event_id", "utterance_index", "total_sentences"}  # fields of `session.done`
PUNCTUATION = re.compile(r"\S*")  # after a word
CATEGORIES = {  # of OpenAI's error types
    "authentication_error": ErrorCategory.AUTHENTICATION,
    "rate_limit_error": ErrorCategory.RATE_LIMIT,
    "invalid_request_error": ErrorCategory.INVALID_REQUEST,
    "server_error": ErrorCategory.SERVER,
}


@dataclass
class StrettoTTSSettings(TTSSettings):
    """Fields of a speech request to the gateway; `extra` may have any others."""

    speed: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    instructions: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    seed: int | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    check: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)


@dataclass
class Utterance:
    """Text of one audio context that the gateway speaks as a whole.

    Attributes:
        start_s: Time at which the utterance begins in the audio context, in seconds.
        text: Text that has been sent.
        num_told: Number of characters of `text` that belong to words with a time.
        is_begun: True if the settings have been sent.
        is_written: True if no more text will be sent.
        is_last: True if the audio context ends with this utterance.
        has_failed: True if the rest of the text is not to be spoken.
    """

    context_id: str
    start_s: float
    text: str = ""
    num_told: int = 0
    num_bytes: int = 0
    is_begun: bool = False
    is_written: bool = False
    is_last: bool = False
    has_failed: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def word_times(self, words: list[dict[str, Any]]) -> list[tuple[str, float]]:
        """Return words as they are written, with their punctuation, and their times in the audio context.

        Words without a time belong to the next one that has one.
        """
        times = []
        for word in words:
            if word.get("text_end", 0) > self.num_told:
                end = PUNCTUATION.match(self.text, word["text_end"]).end()
                times.append((self.text[self.num_told : end].strip(), self.start_s + word["start"]))
                self.num_told = end
        return times


class StrettoTTSService(WebsocketTTSService):
    """Service with one connection to the gateway, which speaks one utterance at a time.

    `TTSStoppedFrame.metadata["stretto"]` has the gateway's report, such as `finish_reason` and `faults`.
    """

    Settings = StrettoTTSSettings
    _settings: StrettoTTSSettings

    def __init__(
        self,
        *,
        base_url: str = "http://localhost:8003/v1",
        api_key: str | None = None,
        settings: StrettoTTSSettings | None = None,
        text_aggregation_mode: TextAggregationMode = TextAggregationMode.TOKEN,
        **kwargs: Any,
    ):
        complete = StrettoTTSSettings(
            model="tts-1", voice=None, language=None, speed=None, instructions=None, seed=None, check=None
        )
        if settings is not None:
            complete.apply_update(settings)
        super().__init__(
            push_text_frames=False,
            push_start_frame=True,
            append_trailing_space=True,
            reconnect_on_error=False,  # the next utterance opens a new connection
            text_aggregation_mode=text_aggregation_mode,
            settings=complete,
            **{"stop_frame_timeout_s": IDLE_S} | kwargs,
        )
        self._url = f"{base_url.replace('http', 'ws', 1).rstrip('/')}/audio/speech/stream"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._receive_task: asyncio.Task[None] | None = None
        self._utterance: Utterance | None = None
        self._spoken_s: dict[str, float] = {}  # of earlier utterances, by audio context

    def can_generate_metrics(self) -> bool:
        return True

    async def setup(self, setup: FrameProcessorSetup) -> None:
        await super().setup(setup)
        try:
            await self._connect()
        except Exception as error:
            await self._report_error(ErrorFrame(f"cannot connect to {self._url}: {error}", exception=error))

    async def _connect(self) -> None:
        await super()._connect()
        await self._connect_websocket()
        self._receive_task = self.create_task(self._receive_task_handler(self._report_error))

    async def _disconnect(self) -> None:
        await super()._disconnect()
        await self._stop_receiving()
        await self._disconnect_websocket()

    async def _stop_receiving(self) -> None:
        if self._receive_task is not None:
            await self.cancel_task(self._receive_task)
            self._receive_task = None

    async def _connect_websocket(self) -> None:
        self._websocket = await self._websocket_connect(
            self._url, additional_headers=self._headers, compression=None, max_size=None
        )
        await self._call_event_handler("on_connected")

    async def _disconnect_websocket(self) -> None:
        if self._websocket is not None:
            await self._websocket.close()
            self._websocket = None
            await self._call_event_handler("on_disconnected")

    async def _send(self, kind: str, **fields: Any) -> None:
        if self._websocket is None:
            raise ConnectionError(f"not connected to {self._url}")
        await self._websocket.send(json.dumps({"type": kind, **fields}))

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        """Send text; its audio and words arrive in `_receive_messages`."""
        utterance = await self._writable(context_id)
        if utterance.has_failed:
            return
        try:
            if not utterance.is_begun:
                await self._begin(utterance)
            utterance.text += text
            await self._send("input.text", text=text)
            await self.start_tts_usage_metrics(text)
            yield None
        except Exception as error:
            utterance.has_failed = True
            utterance.done.set()
            yield ErrorFrame(f"cannot send text to {self._url}: {error}", exception=error)

    async def _writable(self, context_id: str) -> Utterance:
        """Return the utterance for a context's text, once the utterances of other contexts have ended."""
        utterance = self._utterance
        if utterance is not None:
            is_open = utterance.has_failed or not utterance.is_written
            if utterance.context_id == context_id and is_open:
                return utterance
            if not utterance.done.is_set():
                await self._end_text(utterance)
                await utterance.done.wait()
        self._utterance = Utterance(context_id, self._spoken_s.get(context_id, 0.0))
        return self._utterance

    async def _begin(self, utterance: Utterance) -> None:
        utterance.is_begun = True
        if self._websocket is None or self._websocket.state is not State.OPEN:
            await self._stop_receiving()
            await self._disconnect_websocket()
            await self._connect()
        await self._send("session.config", **self._config())

    def _config(self) -> dict[str, Any]:
        names = ("model", "voice", "language", "speed", "instructions", "seed", "check")
        given = {name: value for name in names if (value := getattr(self._settings, name)) is not None}
        form = {"response_format": "pcm", "sample_rate": self.sample_rate, "timestamps": True}
        return self._settings.extra | given | form

    async def _end_text(self, utterance: Utterance) -> None:
        if not utterance.is_written:
            utterance.is_written = True
            with suppress(ConnectionClosed):  # `_receive_messages` reports it
                await self._send("input.done")

    async def flush_audio(self, context_id: str | None = None) -> None:
        """Mark the text of a context as complete."""
        utterance = self._utterance
        if utterance is None or utterance.context_id != context_id or utterance.done.is_set():
            await self._close_context(context_id, {})
            return
        utterance.is_last = True
        await self._end_text(utterance)

    async def on_audio_context_interrupted(self, context_id: str) -> None:
        """Stop the generation on the server. The connection stays open."""
        self._spoken_s.pop(context_id, None)
        utterance = self._utterance
        if utterance is not None and utterance.context_id == context_id and not utterance.done.is_set():
            utterance.is_written = True
            await self._send("input.cancel")
        await super().on_audio_context_interrupted(context_id)

    async def _receive_messages(self) -> None:
        while True:
            try:
                message = await self._websocket.recv()
            except ConnectionClosed:
                if self._utterance is not None and not self._utterance.done.is_set():
                    self._utterance.has_failed = True
                    await self._finish(self._utterance, {})
                raise
            utterance = self._utterance
            if utterance is None or utterance.done.is_set():
                logger.debug(f"{self}: ignored, because no utterance is in progress: {message[:100]!r}")
            elif isinstance(message, bytes):
                utterance.num_bytes += len(message)
                frame = TTSAudioRawFrame(message, self.sample_rate, 1, context_id=utterance.context_id)
                await self.append_to_audio_context(utterance.context_id, frame)
            else:
                await self._handle(utterance, json.loads(message))

    async def _handle(self, utterance: Utterance, event: dict[str, Any]) -> None:
        match event["type"]:
            case "audio.words":
                await self.add_word_timestamps(utterance.word_times(event["words"]), utterance.context_id)
            case "session.done":
                await self._finish(utterance, {name: event[name] for name in event.keys() - NO_REPORT})
            case "error":
                await self._fail(utterance, event)

    async def _finish(self, utterance: Utterance, report: dict[str, Any]) -> None:
        if self.audio_context_available(utterance.context_id):
            seconds = utterance.num_bytes / 2 / self.sample_rate
            self._spoken_s[utterance.context_id] = utterance.start_s + seconds
        utterance.done.set()
        if utterance.is_last:
            await self._close_context(utterance.context_id, report)

    async def _fail(self, utterance: Utterance, event: dict[str, Any]) -> None:
        """Report an error and drop the utterance. The rest of its context's text is not spoken."""
        category = CATEGORIES.get(event["error"]["type"], ErrorCategory.UNKNOWN)
        if "utterance_index" in event and category is ErrorCategory.INVALID_REQUEST:
            category = ErrorCategory.APPLICATION  # the text is at fault, not the settings, so others can be spoken
        utterance.has_failed = True
        await self._websocket.close()
        await self._finish(utterance, {})
        await self.push_error(event["message"], category=category)

    async def _close_context(self, context_id: str | None, report: dict[str, Any]) -> None:
        if context_id is None or not self.audio_context_available(context_id):
            return
        self._spoken_s.pop(context_id, None)
        frame = TTSStoppedFrame(context_id=context_id)
        frame.metadata["stretto"] = report
        await self.append_to_audio_context(context_id, frame)
        await self.remove_audio_context(context_id)
