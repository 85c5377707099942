"""Body of a chat completion, and its conversion to the server's turns."""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from stretto_client import ModelProfile, TaskProfile
from stretto_gateway.api_error import ApiError, refused
from stretto_gateway.catalogue import converses
from stretto_gateway.ignored import Body
from stretto_gateway.speech_request import AudioFormat, Text

MAX_TURNS, MAX_PARTS = 64, 64  # turns of a conversation, parts of a turn
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class InputAudio(BaseModel):
    """Recording in a turn: a wav, flac, ogg, mp3, webm, m4a, mp4 or aac file as base64."""

    data: str
    format: str = "wav"


class ContentPart(BaseModel):
    """Part of a turn: text, or a recording."""

    type: Literal["text", "input_audio"]
    text: Text | None = None
    input_audio: InputAudio | None = None


class Message(BaseModel):
    """Turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ContentPart], Field(max_length=MAX_PARTS, fail_fast=True)]


class AudioForm(BaseModel):
    """Voice and format of a spoken reply. A streamed reply must be `pcm16`."""

    voice: Text | None = None
    format: AudioFormat | Literal["pcm16"] = "wav"


class ChatRequest(Body):
    """Supported fields of OpenAI's chat completions."""

    model: Text = "gpt-audio"
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_TURNS, fail_fast=True)]
    modalities: list[Literal["text", "audio"]] = Field(default=["text"], max_length=2, fail_fast=True)
    audio: AudioForm = Field(default_factory=AudioForm)
    stream: bool = False
    n: Literal[1] = 1
    seed: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)

    def options(self) -> dict[str, Any]:
        """Return the fields that the server has under the same name."""
        values = {name: getattr(self, name) for name in ("seed", "temperature", "top_p")}
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class Conversation:
    """Turns in the server's form, and the files that they refer to, in order."""

    turns: list[dict[str, Any]] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)

    def kinds(self) -> set[str]:
        """Return the parts of the last turn: `text`, `audio`."""
        return set(self.turns[-1]) - {"role"}


class Texts:
    """Character budget of one conversation: at most `max_chars` in all texts."""

    def __init__(self, max_chars: int):
        self._max_chars, self._num_chars = max_chars, 0

    def add(self, text: str, path: str) -> str:
        """Return `text` unchanged; raise ApiError for its `path` if it exceeds the budget."""
        self._num_chars += len(text)
        if self._num_chars > self._max_chars:
            raise refused(path, f"at most {self._max_chars} characters in all texts", f"{self._num_chars} characters")
        return text


def read_conversation(messages: list[Message], max_chars: int) -> Conversation:
    """Return the turns of a request; raise ApiError for an unreadable part or if the texts are too long."""
    conversation, texts = Conversation(), Texts(max_chars)
    for index, message in enumerate(messages):
        parts, where = message.content, f"messages.{index}.content"
        if isinstance(parts, str):
            conversation.turns.append({"role": ROLES[message.role], "text": texts.add(parts, where)})
            continue
        if not parts:
            raise refused(where, "text or at least one part", [])
        for place, part in enumerate(parts):
            turn = {"role": ROLES[message.role]}
            path = f"{where}.{place}"
            if part.type == "text":
                turn["text"] = texts.add(given(part.text, f"{path}.text"), f"{path}.text")
            else:
                conversation.files.append(read_base64(given(part.input_audio, f"{path}.input_audio").data, path))
                turn["audio"] = "audio"
            conversation.turns.append(turn)
    return conversation


def given(value: Any, path: str) -> Any:
    """Return `value`; raise ApiError if this required field is missing."""
    if value is None:
        raise ApiError(400, f"{path}: missing", path, "missing")
    return value


def read_base64(data: str, path: str) -> bytes:
    """Return the bytes of a file; raise ApiError if `data` is not base64."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise refused(f"{path}.input_audio.data", "base64", data) from None


def conversing_task(profile: ModelProfile, kinds: set[str], speaks: bool) -> TaskProfile:
    """Return the first task that answers a turn with these parts, in speech or in text; raise ApiError if none does."""
    for task in profile.tasks:
        fits = set(task.needs) <= kinds <= {*task.needs, *task.also}
        if converses(task) and task.speaks == speaks and fits:
            return task
    told = f"{profile.family!r} has no conversation that answers {' and '.join(sorted(kinds))} in "
    raise ApiError(400, f"model: {told}{'speech' if speaks else 'text'}", "model", "unsupported")
