"""`POST /v1/chat/completions`: generates the next turn of a conversation, as text or speech."""

import base64
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stretto_client import ModelProfile, SpeechEvent, TaskOptions, TaskProfile
from stretto_contract.finish_reasons import limit_of
from stretto_contract.schema import Temperature, TopP
from stretto_gateway.admission import unless_disconnected
from stretto_gateway.answers import ApiError, Completion, described, mismatch
from stretto_gateway.base64_data import DATA_URL, EncodedFile
from stretto_gateway.catalogue import CallersVoices, VoiceFile, answers_turns, converses
from stretto_gateway.encoding import Encoder, default_rate, make_encoder
from stretto_gateway.events import Streamed, closing, reply_events
from stretto_gateway.fields import Body, Ignored, Text
from stretto_gateway.gateway import Gateway
from stretto_gateway.metrics import SpeechTrace, Trace
from stretto_gateway.speech import encoded, sse, sse_error, usage
from stretto_gateway.speech_request import AudioFormat, Voiced
from stretto_gateway.turns import AUDIO

MAX_TURNS = 64  # in a conversation
MAX_PARTS = 64  # in a turn
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class InputAudio(Body):
    """Recording in a turn: a wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac file in base64."""

    data: str
    format: str = "wav"


class ImageUrl(Body):
    """Image in a turn: a JPEG, PNG or WebP file as a `data:` URL with base64. `low` and `high` have no effect."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ContentPart(Body):
    """Part of a turn: text, a recording, or an image."""

    type: Literal["text", "input_audio", "image_url"]
    text: Text | None = None
    input_audio: InputAudio | None = None
    image_url: ImageUrl | None = None


class Message(Body):
    """Turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[ContentPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("parts")],
        Discriminator(lambda content: "parts" if isinstance(content, list) else "text"),
    ]


class AudioForm(Voiced):
    """Voice and format of a spoken reply. The chunks of a streamed reply together are one file in this format."""

    format: AudioFormat | Literal["pcm16"] = "wav"

    @property
    def rate(self) -> int:
        """Sample rate of the reply in Hz."""
        return default_rate(self.format)

    def encoder(self, tags: Mapping[str, str]) -> Encoder:
        """Create an encoder for one reply, which writes `tags` to the file."""
        return make_encoder("pcm" if self.format == "pcm16" else self.format, self.rate, tags)


class ChatRequest(Body):
    """Supported fields of OpenAI's chat completion requests."""

    model: Text = "gpt-audio"
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_TURNS, fail_fast=True)]
    modalities: list[Literal["text", "audio"]] = Field(default=["text"], max_length=2, fail_fast=True)
    audio: AudioForm = Field(default_factory=AudioForm)
    stream: bool = False
    n: Literal[1] = 1
    seed: int | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1, description="longest reply of text")

    def options(self, speaks: bool, ignored: Ignored) -> TaskOptions:
        """Return the server's options of a reply (speech if `speaks`); add fields without effect to `ignored`."""
        values = {name: getattr(self, name) for name in ("seed", "temperature", "top_p")}
        options = cast(TaskOptions, {name: value for name, value in values.items() if value is not None})
        for index, message in enumerate(self.messages):
            for content_index, content_part in enumerate(message.content if isinstance(message.content, list) else ()):
                if content_part.image_url is not None and content_part.image_url.detail != "auto":
                    name = f"messages.{index}.content.{content_index}.image_url.detail"
                    ignored.add(name, "auto or no value", content_part.image_url.detail)
        limit = self.max_completion_tokens
        if limit is not None and speaks:
            ignored.add("max_completion_tokens", "no value for a spoken reply", limit)
        elif limit is not None:
            options["text"] = {"max_rows": limit}
        return options


@dataclass
class ServerTurns:
    """Turns in the server's format, and the files to which they refer, in order."""

    turns: list[dict[str, Any]] = field(default_factory=list)
    files: list[bytes | EncodedFile] = field(default_factory=list)
    images: list[EncodedFile] = field(default_factory=list)

    def kinds(self) -> set[str]:
        """Return the kinds of content in the last turn: `text`, `audio`, `image`."""
        return set(self.turns[-1]) - {"role"}


def set_voice(recording: bytes, turns: list[dict[str, Any]], files: list[bytes] | list[bytes | EncodedFile]) -> None:
    """Use a recorded voice for the replies: make its file the audio of the system turn."""
    if not turns or turns[0]["role"] != "system":
        turns.insert(0, {"role": "system"})
    turns[0] = turns[0] | {"audio": "audio"}
    files.insert(0, recording)


class Texts:
    """Character budget for all texts in a conversation."""

    def __init__(self, max_chars: int):
        self._max_chars = max_chars
        self._num_chars = 0

    def add(self, text: str, path: str) -> str:
        """Return `text` unchanged; raise ApiError for the field `path` if the budget is exceeded."""
        self._num_chars += len(text)
        if self._num_chars > self._max_chars:
            raise mismatch(path, f"at most {self._max_chars} characters in all texts", f"{self._num_chars} characters")
        return text


def read_conversation(messages: list[Message], max_chars: int) -> ServerTurns:
    """Convert the messages of a request; raise ApiError if a part is missing or the texts are too long."""
    conversation = ServerTurns()
    texts = Texts(max_chars)
    for index, message in enumerate(messages):
        parts = message.content
        where = f"messages.{index}.content"
        if isinstance(parts, str):
            conversation.turns.append({"role": ROLES[message.role], "text": texts.add(parts, where)})
            continue
        if not parts:
            raise mismatch(where, "text or at least one part", "an empty list")
        for content_index, content_part in enumerate(parts):
            turn = {"role": ROLES[message.role]}
            path = f"{where}.{content_index}"
            if content_part.type == "text":
                turn["text"] = texts.add(given(content_part.text, f"{path}.text"), f"{path}.text")
            elif content_part.type == "image_url":
                image = given(content_part.image_url, f"{path}.image_url")
                conversation.images.append(EncodedFile(f"{path}.image_url.url", image.url, DATA_URL))
                turn["image"] = "image"
            else:
                audio = given(content_part.input_audio, f"{path}.input_audio")
                conversation.files.append(EncodedFile(f"{path}.input_audio.data", audio.data))
                turn["audio"] = "audio"
            conversation.turns.append(turn)
    return conversation


def given(value: Any, path: str) -> Any:
    """Return the value of the required field `path`; raise ApiError if it is missing."""
    if value is None:
        raise ApiError(400, f"{path}: missing", path, "missing")
    return value


def conversing_task(profile: ModelProfile, kinds: set[str], speaks: bool) -> TaskProfile:
    """Return the first task that answers a turn with content of these kinds; raise ApiError if there is none."""
    for task in profile.tasks:
        fits = set(task.needs) <= kinds <= {*task.needs, *task.also}
        if converses(task) and task.speaks == speaks and fits:
            return task
    message = f"{profile.family!r} does not support conversations with {' and '.join(sorted(kinds))} as input and "
    raise ApiError(400, f"model: {message}{'speech' if speaks else 'text'} as output", "model", "unsupported")


router = APIRouter()
AUDIO_KEPT_S = 3600  # only for `expires_at`: the audio is in the response and is not stored

ANSWERS = described("The reply, or events with its chunks", "text/event-stream", model=Completion)


@router.post("/v1/chat/completions", response_class=Response, responses=ANSWERS)
async def create_completion(body: ChatRequest, request: Request) -> Response:
    """Generate the reply to `messages`, as speech if `modalities` contains `audio`."""
    gateway: Gateway = await request.app.state.gateway.for_model(body.model, answers_turns)
    ignored = Ignored(body, gateway.strict)
    profile = await gateway.catalogue.model(body.model)
    conversation = read_conversation(body.messages, gateway.limits.max_input_chars)
    speaks = "audio" in body.modalities
    task = conversing_task(profile, conversation.kinds(), speaks)
    options: TaskOptions = {**body.options(speaks, ignored), "task": task.name}
    if speaks:
        options["output"] = {"encoding": "pcm_s16le", "sample_rate": body.audio.rate}
        voices = CallersVoices(gateway.voices, request.state.owner)
        voice = await voices.choose(profile, task, body.audio.voice_name)
        if isinstance(voice, VoiceFile):
            request.state.keep(len(voice.audio))
            set_voice(voice.audio, conversation.turns, conversation.files)
        elif voice is not None:
            options["voice"] = voice
    events = reply(gateway, conversation, options, speaks)
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": gateway.catalogue.name_of(profile),
    }
    if body.stream:
        parts = stream_parts(events, head, body.audio.encoder(gateway.audio_tags) if speaks else None)
        answer: Response = Streamed(parts, "text/event-stream", gateway.limits.stall_s, sse_error)
    else:
        answer = JSONResponse(
            head | await unless_disconnected(request.receive, completion(events, body, gateway.audio_tags))
        )
    answer.headers.update(ignored.headers)
    return answer


async def reply(
    gateway: Gateway, conversation: ServerTurns, options: TaskOptions, speaks: bool
) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of the reply; raise ApiError if it fails."""
    trace = (SpeechTrace if speaks else Trace)(gateway.metrics, options["task"])
    async with gateway.slot():
        files = [await decoded(file) for file in conversation.files]
        images = [await decoded(image) for image in conversation.images]
        begin = partial(gateway.client.converse, conversation.turns, *files, images=images, **options)
        async with closing(reply_events(begin, {}, trace, gateway.queue)) as events:
            async for event in events:
                yield event


async def decoded(file: bytes | EncodedFile) -> bytes:
    """Return a file's bytes; raise ApiError if it is not base64."""
    return file if isinstance(file, bytes) else await AUDIO.run(file.decode)


async def completion(
    events: AsyncGenerator[SpeechEvent, None], body: ChatRequest, tags: Mapping[str, str]
) -> dict[str, Any]:
    """Return the complete reply; `tags` are written to the audio file."""
    encoder = body.audio.encoder(tags)
    audio = bytearray()
    text = ""
    report = dict[str, Any]()
    async with closing(events):
        async for event in events:
            text += event.text
            report = event.report or report
            if event.pcm is not None:
                audio += await encoded(encoder, event.pcm)
    message: dict[str, Any] = {"role": "assistant", "content": text.strip()}
    if "audio" in body.modalities:
        sound = base64.b64encode(audio + encoder.close()).decode()
        message |= {"content": None, "audio": audio_head() | {"data": sound, "transcript": text.strip()}}
    choice = {"index": 0, "message": message, "finish_reason": finish(report), "logprobs": None}
    return {"object": "chat.completion", "choices": [choice], "usage": chat_usage(report)}


async def stream_parts(
    events: AsyncGenerator[SpeechEvent, None], head: dict[str, Any], encoder: Encoder | None
) -> AsyncGenerator[bytes, None]:
    """Yield the reply as `chat.completion.chunk` events; the text of a spoken reply is its transcript."""
    head = head | {"object": "chat.completion.chunk"}
    sound_id = audio_head()["id"]
    report = dict[str, Any]()
    delta: dict[str, Any] = {"role": "assistant"}
    async with closing(events):
        async for event in events:
            report = event.report or report
            if encoder is not None and event.text:
                delta["audio"] = {"id": sound_id, "transcript": event.text}
            elif event.text:
                delta["content"] = event.text
            if encoder is not None and event.pcm is not None and (data := await encoded(encoder, event.pcm)):
                delta["audio"] = delta.get("audio", {"id": sound_id}) | {"data": base64.b64encode(data).decode()}
            if delta:
                yield sse(head | {"choices": [choice(delta)]})
            delta = {}
    if encoder is not None and (tail := encoder.close()):
        yield sse(head | {"choices": [choice({"audio": {"id": sound_id, "data": base64.b64encode(tail).decode()}})]})
    yield sse(head | {"choices": [choice({}, finish(report))], "usage": chat_usage(report)})
    yield b"data: [DONE]\n\n"


def choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    """Return the only choice of a chunk."""
    return {"index": 0, "delta": delta, "finish_reason": reason}


def audio_head() -> dict[str, Any]:
    """Return the fields that OpenAI's API requires in an audio object."""
    return {"id": f"audio_{secrets.token_hex(12)}", "expires_at": int(time.time()) + AUDIO_KEPT_S}


def finish(report: dict[str, Any]) -> str:
    """Return OpenAI's finish reason."""
    return "length" if limit_of(report) else "stop"


def chat_usage(report: dict[str, Any]) -> dict[str, int]:
    """Return the usage with the field names of chat completions."""
    rows = usage(report)
    counts = {"prompt_tokens": rows["input_tokens"], "completion_tokens": rows["output_tokens"]}
    return counts | {"total_tokens": rows["total_tokens"]}
