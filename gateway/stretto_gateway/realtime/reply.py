"""Reply in a realtime session: generation, server events, conversation item and playback position."""

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from numpy.typing import NDArray

from stretto_client import ModelProfile, Speech, SpeechEvent, TaskOptions
from stretto_contract.finish_reasons import limit_of
from stretto_gateway.answers import ApiError, error_path, refused
from stretto_gateway.catalogue import CallersVoices, VoiceFile
from stretto_gateway.chat import conversing_task, set_voice
from stretto_gateway.encoding import DEFAULT_RATE, TimeStretch
from stretto_gateway.events import closing, reply_events
from stretto_gateway.fields import held_bytes
from stretto_gateway.gateway import Gateway
from stretto_gateway.metrics import SpeechTrace, Trace
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.conversation import MAX_CHAR_BYTES, Conversation, Item, ItemPart, Kind, asked_kinds
from stretto_gateway.realtime.events import ReplyFields, ResponseCreate
from stretto_gateway.realtime.settings import Format, RealtimeSettings, ignoring
from stretto_gateway.realtime.wire_audio import written
from stretto_gateway.server_queue import ServerQueue
from stretto_gateway.socket_session import new_id
from stretto_gateway.speech import usage
from stretto_gateway.speech_request import OPTIONS
from stretto_gateway.turns import AUDIO

clock_s: Callable[[], float] = time.monotonic
Finish = tuple[str, dict[str, Any]]  # status and its details
NUMBER_BYTES = 36  # memory of an integer in a list: the object and its reference
WORD_BYTES = 256  # approximate memory of a word with its time
# Request fields, keyed by the server's field names.
FIELDS = {"options": "response.options", "options.voice": "response.audio.output.voice"}


@dataclass(frozen=True, slots=True)
class Order:
    """Prepared request for a reply.

    Attributes:
        is_kept: True if the reply becomes an item of the conversation.
        speed: Speed of the audio; 1 is the model's own.
    """

    turns: list[dict[str, Any]]
    files: list[bytes]
    options: TaskOptions
    record: dict[str, Any]
    ignored: list[ApiError]
    is_kept: bool
    speed: float
    form: Format
    images: list[bytes] = field(default_factory=list)

    @property
    def speaks(self) -> bool:
        """True if the reply is audio."""
        return "output" in self.options

    @property
    def num_bytes(self) -> int:
        """Memory of files, texts, codes and options, in bytes, in addition to the conversation's memory."""
        num_codes = sum(len(stream) for turn in self.turns for stream in turn.get("codes", ()))
        num_chars = sum(len(turn.get("text", "")) for turn in self.turns)
        num_bytes = MAX_CHAR_BYTES * num_chars + NUMBER_BYTES * num_codes + held_bytes(self.options)
        return sum(map(len, (*self.files, *self.images))) + num_bytes


async def make_order(
    profile: ModelProfile,
    settings: RealtimeSettings,
    event: ResponseCreate,
    conversation: Conversation,
    voices: CallersVoices,
    is_strict: bool,
) -> Order:
    """Prepare the request for a reply to `conversation`; raise ApiError if the model cannot answer it.

    Instructions that the task does not accept are ignored or, if `is_strict`, raise ApiError.
    """
    fields = event.response
    ignored = list(event.ignored)
    modalities = fields.output_modalities or settings.output_modalities
    of_session = fields.instructions is None
    instructions = settings.instructions if of_session else fields.instructions
    turns, files, images = conversation.turns(instructions)
    if not asked_kinds(turns):
        turns = unprompted(turns, can_go_on=not of_session)
    with error_path("session"):
        task = conversing_task(profile, asked_kinds(turns), speaks="audio" in modalities)
    if turns[0]["role"] == "system" and "text" not in task.system:
        where = "session" if of_session else "response"
        expected = f"no value (task {task.name!r} of {profile.family!r} does not accept instructions)"
        ignored.append(refused(f"{where}.instructions", expected, instructions))
        if is_strict:
            raise ignored[-1]
        turns = turns[1:]
    voice_name = fields.audio.output.voice_name or settings.audio.output.voice_name
    options = given_options(fields)
    options["task"] = task.name
    output = fields.audio.output
    form = output.format if "format" in output.model_fields_set else settings.audio.output.format
    if task.speaks:
        options["output"] = {"encoding": "pcm_s16le", "sample_rate": form.rate, "codes": True}
        with error_path("response.audio.output" if fields.audio.output.voice_name else "session.audio.output"):
            voice = await voices.choose(profile, task, voice_name)
        if isinstance(voice, VoiceFile):
            set_voice(voice.audio, turns, files)
        elif voice is not None:
            options["voice"] = voice
    record = response_record(modalities, voice_name, form, fields.metadata)
    speed = output.speed or settings.audio.output.speed or 1.0
    return Order(turns, files, options, record, ignored, fields.conversation != "none", speed, form, images)


def response_record(modalities: Sequence[str], voice_name: str | None, form: Format, metadata: Any) -> dict[str, Any]:
    """Return OpenAI's response object, without the state of the reply."""
    sound = {"format": form.model_dump(), "voice": voice_name}
    return {
        "object": "realtime.response",
        "output_modalities": modalities,
        "audio": {"output": sound},
        "metadata": metadata,
        "max_output_tokens": "inf",
    }


def unprompted(turns: list[dict[str, Any]], can_go_on: bool) -> list[dict[str, Any]]:
    """Turn the instructions into the user's last turn, for a reply without a question, such as a greeting.

    ApiError is raised without instructions or, unless `can_go_on`, if there are earlier user turns.
    """
    has_begun = any(turn["role"] == "user" for turn in turns)
    if not turns or turns[0]["role"] != "system" or (has_begun and not can_go_on):
        expected = "a user message after the last reply, or instructions in the response"
        raise ApiError(400, f"response: expected {expected}, got neither", "response", "invalid_value")
    return [*turns[1:], {"role": "user", "text": turns[0]["text"]}]


def given_options(fields: ReplyFields) -> TaskOptions:
    """Return the server's options for one reply, unchecked; raise ApiError for an unknown name."""
    options = fields.options or {}
    unknown = next((name for name in options if name not in OPTIONS), None)
    if unknown is not None:
        raise refused("response.options", f"only options among {', '.join(OPTIONS)}", unknown)
    return cast(TaskOptions, {**options})


class Reply:
    """Reply that `task` generates, from `begin` until the reply is complete or cancelled."""

    _fields = FIELDS

    def __init__(self, gateway: Gateway, channel: Channel, conversation: Conversation, order: Order):
        self._gateway = gateway
        self._channel = channel
        self._conversation = conversation
        self._order = order
        self.response_id = new_id("resp")
        part_type: Kind = "output_audio" if order.speaks else "output_text"
        self.item = Item("assistant", [ItemPart(part_type)], status="in_progress")
        self.task: asyncio.Task[None] | None = None
        self._stretch = TimeStretch(order.speed, order.form.rate) if order.speaks and order.speed != 1 else None
        self._is_open = self._is_ending = False
        self._report: dict[str, Any] = {}
        self._first_s: float | None = None
        self._queue: ServerQueue | None = gateway.queue

    @property
    def is_running(self) -> bool:
        """True while the reply is being generated."""
        return self.task is not None and not self.task.done()

    def played_samples(self) -> int:
        """Return the number of samples played so far if playback began when the first one was sent."""
        if self._first_s is None:
            return 0
        num_sent = max(0, self.item.num_samples - self._channel.num_unplayed)
        return min(num_sent, round((clock_s() - self._first_s) * DEFAULT_RATE))

    async def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Send the first events, and generate the reply in the background; raise ApiError at the memory limit."""
        held = self._gateway.sessions.held
        num_bytes = self._order.num_bytes
        held.add(num_bytes)
        try:
            record = self._record("in_progress", {})
            await self._channel.send("response.created", response=record, **ignoring(self._order.ignored))
        except BaseException:
            held.remove(num_bytes)
            raise
        self.task = tasks.create_task(self._run())
        self.task.add_done_callback(lambda _: self._forget(num_bytes))

    def _forget(self, num_bytes: int) -> None:
        kept = {name: value for name, value in self._order.options.items() if name not in OPTIONS}
        self._order = replace(self._order, turns=[], files=[], images=[], options=cast(TaskOptions, kept))
        self._gateway.sessions.held.remove(num_bytes)

    async def cancel(self, reason: str) -> None:
        """Cancel the reply; no more of it is sent."""
        assert self.task is not None
        if not self._is_ending:
            self.task.cancel()
        await asyncio.wait([self.task])
        if not self._is_ending:
            await self._end("cancelled", {"reason": reason})

    async def _run(self) -> None:
        status, details = await self._say()
        self._is_ending = True
        await self._end(status, details)

    async def _say(self) -> Finish:
        order = self._order
        gateway = self._gateway
        try:
            trace = (SpeechTrace if order.speaks else Trace)(gateway.metrics, order.options["task"])
            async with gateway.slot():
                async with closing(reply_events(self._open_stream, self._fields, trace, self._queue)) as events:
                    async for event in events:
                        await self._add(event)
                if self._stretch is not None:
                    await self._send_audio(self._stretch.close())
        except ApiError as error:
            record = error.record()["error"]
            return "failed", {"error": {name: record[name] for name in ("type", "code", "message")}}
        if limit_of(self._report):
            return "incomplete", {"reason": "max_output_tokens"}
        return "completed", {}

    def _open_stream(self) -> Speech:
        """Send the request, and return the events of the reply."""
        order = self._order
        return self._gateway.client.converse(order.turns, *order.files, images=order.images, **order.options)

    async def _add(self, event: SpeechEvent) -> None:
        if not self._is_open:
            await self._open()
        content_part = self.item.parts[0]
        self._report = event.report or self._report
        self._keep(event)
        if event.text:
            content_part.text = (content_part.text or "") + event.text
            event_type = (
                "response.output_audio_transcript.delta" if self._order.speaks else "response.output_text.delta"
            )
            await self._send_event(event_type, delta=event.text)
        if event.pcm is not None and len(event.pcm):
            await self._play(event.pcm)

    def _keep(self, event: SpeechEvent) -> None:
        """Store the codes and words for later turns, unless the item has been deleted."""
        codes = event.codes if event.codes is not None and event.codes.shape[1] else None
        num_bytes = MAX_CHAR_BYTES * len(event.text) + WORD_BYTES * len(event.words)
        if self._conversation.grow(self.item, num_bytes + (0 if codes is None else codes.nbytes)):
            speed = self._order.speed
            self.item.words += [replace(word, start_s=word.start_s / speed) for word in event.words]
            self.item.codes += [] if codes is None else [codes]

    async def _play(self, pcm: NDArray[Any]) -> None:
        """Send samples from the model, int16 [n], stretched to the reply's speed."""
        if self._stretch is not None:
            pcm = await AUDIO.run(self._stretch.stretch, pcm)
        await self._send_audio(pcm)

    async def _send_audio(self, pcm: NDArray[Any]) -> None:
        """Send samples that are ready for playback, int16 [n] at the rate of the reply's format."""
        if not len(pcm):
            return
        if self._first_s is None:
            self._first_s = clock_s()
        self.item.num_samples += len(pcm) * DEFAULT_RATE // self._order.form.rate
        data = base64.b64encode(written(self._order.form, pcm)).decode()
        await self._send_event("response.output_audio.delta", delta=data)

    async def _open(self) -> None:
        before = self._conversation.add(self.item) if self._order.is_kept else None
        self._is_open = True
        location = {"response_id": self.response_id, "output_index": 0}
        await self._channel.send("response.output_item.added", item=self.item.record(), **location)
        if self._order.is_kept:
            await self._channel.send("conversation.item.added", item=self.item.record(), previous_item_id=before)
        await self._send_event("response.content_part.added", part=self._part())

    async def _end(self, status: str, details: dict[str, Any]) -> None:
        if self._is_open:
            await self._close(status)
        await self._channel.send("response.done", response=self._record(status, details))

    async def _close(self, status: str) -> None:
        self.item.status = "completed" if status == "completed" else "incomplete"
        text = self.item.parts[0].text
        if self._order.speaks:
            await self._send_event("response.output_audio.done")
            await self._send_event("response.output_audio_transcript.done", transcript=text)
        else:
            await self._send_event("response.output_text.done", text=text)
        await self._send_event("response.content_part.done", part=self._part())
        location = {"response_id": self.response_id, "output_index": 0}
        if self._order.is_kept:
            await self._channel.send("conversation.item.done", item=self.item.record())
        await self._channel.send("response.output_item.done", item=self.item.record(), **location)

    async def _send_event(self, event_type: str, **fields: Any) -> None:
        location = {
            "response_id": self.response_id,
            "item_id": self.item.item_id,
            "output_index": 0,
            "content_index": 0,
        }
        await self._channel.send(event_type, **location, **fields)

    def _part(self) -> dict[str, Any]:
        text = self.item.parts[0].text
        return {"type": "audio", "transcript": text} if self._order.speaks else {"type": "text", "text": text}

    def _record(self, status: str, details: dict[str, Any]) -> dict[str, Any]:
        is_over = status != "in_progress"
        extra = {
            "id": self.response_id,
            "status": status,
            "status_details": {"type": status} | details if details else None,
            "output": [self.item.record()] if self._is_open and is_over else [],
            "usage": usage(self._report) if is_over else None,
        }
        return self._order.record | extra
