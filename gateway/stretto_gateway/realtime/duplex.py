"""Realtime sessions with a full-duplex model, which generates speech while it reads the user's audio."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from stretto_client import ModelProfile, Speech
from stretto_gateway.answers import ApiError, error_path, refused
from stretto_gateway.catalogue import DUPLEX, CallersVoices, VoiceFile, find_task
from stretto_gateway.encoding import DEFAULT_RATE
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime import events as client
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.conversation import Conversation, Item, ItemPart
from stretto_gateway.realtime.reply import FIELDS, Order, Reply, response_record
from stretto_gateway.realtime.session import RealtimeSession
from stretto_gateway.realtime.settings import Format, RealtimeSettings, Settings
from stretto_gateway.realtime.talk import LiveTurn


def is_duplex(profile: ModelProfile, settings: Settings) -> bool:
    """Return True if a session with these settings uses a full-duplex model."""
    has_task = any(task.name == DUPLEX for task in profile.tasks)
    return has_task and profile.reads_live_audio and isinstance(settings, RealtimeSettings)


@dataclass(frozen=True)
class Persona:
    """Role and voice of a model, from the settings of a session.

    Attributes:
        voice: The model's name for the voice, or a recording of it; None for its default voice.
        voice_name: Name of the voice in the settings.
    """

    role: str
    voice: VoiceFile | str | None
    voice_name: str | None
    form: Format
    ignored: list[ApiError]

    @classmethod
    async def from_settings(
        cls, settings: RealtimeSettings, profile: ModelProfile, voices: CallersVoices, is_strict: bool
    ) -> Self:
        """Return the persona of a session; raise ApiError if the voice is unknown.

        A role that the model cannot have is ignored or, if `is_strict`, raises ApiError.
        """
        role = settings.instructions or ""
        name = settings.audio.output.voice_name
        ignored = list[ApiError]()
        task = find_task(profile, (DUPLEX,), "full-duplex sessions")
        if role and "text" not in task.system:
            expected = f"no value (task {DUPLEX!r} of {profile.family!r} does not accept instructions)"
            ignored.append(refused("session.instructions", expected, role))
            if is_strict:
                raise ignored[0]
            role = ""
        with error_path("session.audio.output"):
            voice = await voices.choose(profile, task, name)
        return cls(role, voice, name, settings.audio.output.format, ignored)


class DuplexReply(Reply):
    """Reply that lasts as long as the user's audio."""

    _fields = (
        FIELDS
        | {"messages[0].text": "session.instructions"}
        | dict.fromkeys(("options.voice", "audio", "messages[0].audio"), "session.audio.output.voice")
    )

    def __init__(self, gateway: Gateway, channel: Channel, audio: LiveTurn, persona: Persona):
        conversation = Conversation(0, 0, gateway.sessions.held)  # the reply is not an item of a conversation
        record = response_record(["audio"], persona.voice_name, persona.form, None)
        output: Any = {"encoding": "pcm_s16le", "sample_rate": persona.form.rate}
        files = [persona.voice.audio] if isinstance(persona.voice, VoiceFile) else []
        options: Any = {"task": DUPLEX, "output": output}
        order = Order([], files, options, record, persona.ignored, is_kept=False, speed=1.0, form=persona.form)
        super().__init__(gateway, channel, conversation, order)
        self._audio = audio
        self._persona = persona
        self._queue = None  # the user's audio is read only once

    def _open_stream(self) -> Speech:
        options = self._order.options
        persona = self._persona
        named: Any = {"system": persona.role, "voice": persona.voice, "output": options["output"]}
        limits = self._gateway.limits
        named |= {"total_s": limits.session_s, "resume_s": limits.resume_s}
        return self._gateway.client.talk(self._audio.pieces(), DEFAULT_RATE, **named)


class DuplexSession(RealtimeSession):
    """Session of one connection with a full-duplex model.

    Its only response begins with the user's first samples. The model takes turns by itself, so client events about
    turns are rejected.
    """

    def __init__(self, gateway: Gateway, channel: Channel, model: str, tasks: asyncio.TaskGroup, voices: CallersVoices):
        super().__init__(gateway, channel, model, tasks, voices)
        self._audio: LiveTurn | None = None
        self._duplex: DuplexReply | None = None
        self._fixed: dict[str, Any] = {}  # settings that do not change after the first audio
        handlers: dict[str, Callable[[Any], Awaitable[None]]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "response.cancel": self._cancel,
            "output_audio_buffer.clear": self._channel.clear_output,
        }
        self._handlers = dict.fromkeys(self._handlers, self._refuse) | handlers

    async def complete(self) -> None:
        """End the user's audio, and wait until the response is complete."""
        if self._audio is not None and self._duplex is not None and self._duplex.task is not None:
            self._audio.add(b"")
            await asyncio.wait([self._duplex.task])

    def _apply(self, settings: Settings, profile: ModelProfile) -> None:
        """Apply the settings, except turn detection and transcription.

        ApiError is raised if the session only transcribes, or if the role, the voice or the format of the speech
        changes after the first audio.
        """
        if not isinstance(settings, RealtimeSettings):
            raise refused("session.type", "realtime (this model does not transcribe)", settings.type)
        output = settings.audio.output
        fixed = {
            "instructions": settings.instructions,
            "audio.output.voice": output.voice_name,
            "audio.output.format": output.format.type,
        }
        for name, value in fixed.items():
            if self._audio is not None and value != self._fixed[name]:
                raise refused(f"session.{name}", "no change after the first audio", value)
        self._fixed = fixed
        without = {"turn_detection": None, "transcription": None}
        audio_input = settings.audio.input.model_copy(update=without)
        super()._apply(
            settings.model_copy(update={"audio": settings.audio.model_copy(update={"input": audio_input})}), profile
        )

    async def hear(self, pcm: bytes, event_id: str | None = None) -> None:
        if self._duplex is None:
            await self._begin()
        assert self._audio is not None, "it begins with the response"
        if self._audio.has_ended:
            raise ApiError(400, "the response has ended; open another session", code="session_ended")
        if pcm:
            self._audio.add(pcm)

    async def _begin(self) -> None:
        """Begin the response; raise ApiError if the gateway is shutting down, or the role cannot be used."""
        if self._gateway.sessions.draining.is_set():
            raise ApiError(503, "the gateway is shutting down", code="unavailable")
        self._expect_format("output", "response")
        assert isinstance(self._settings, RealtimeSettings)
        profile = await self._gateway.catalogue.profile()
        persona = await Persona.from_settings(self._settings, profile, self._voices, self._gateway.strict)
        self._audio = LiveTurn(Item("user", [ItemPart("input_audio", None)]), self._gateway.sessions.held)
        self._duplex = DuplexReply(self._gateway, self._channel, self._audio, persona)
        await self._duplex.begin(self._tasks)
        assert self._duplex.task is not None
        self._audio.start(self._duplex.task)

    async def _cancel(self, event: client.ResponseCancel) -> None:
        reply = self._duplex
        if reply is None or not reply.is_running or event.response_id not in (None, reply.response_id):
            message = "Cancellation failed, because no such reply is in progress"
            raise ApiError(400, message, "response_id", "response_cancel_not_active")
        await reply.cancel("client_cancelled")

    async def _refuse(self, event: client.ClientEvent) -> None:
        raise refused("type", "an event without turns (the model takes turns by itself)", event.type)
