"""Endpoints of ElevenLabs' HTTP API: speech, voices and models."""

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.routing import APIRoute
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope
from typing_extensions import TypedDict

from stretto_client import SpeakArguments
from stretto_contract.languages import CODES
from stretto_elevenlabs.alignment import CharacterTimes, Times
from stretto_elevenlabs.errors import ERRORS, has_own_key
from stretto_elevenlabs.fields import USUAL_FORMAT, ElevenLabsItem, SpeechBody, ask_for_words, speaking, speech_item
from stretto_gateway.admission import unless_disconnected
from stretto_gateway.answers import FILE, ApiError, described
from stretto_gateway.catalogue import speaks
from stretto_gateway.encoding import MEDIA_TYPES
from stretto_gateway.events import closing
from stretto_gateway.fields import Ignored
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech import FILE_S, answered, audio_parts, speech_options, timed_parts
from stretto_gateway.turns import AUDIO
from stretto_gateway.voices import list_voices
from stretto_gateway.whole_file import AudioBudget, parts_of, whole_file

router = APIRouter()
LANGUAGE_CODES = {name: code for code, name in reversed(CODES.items())}
ANSWERS = described("Audio, chunk by chunk", *MEDIA_TYPES.values(), schema=FILE) | ERRORS
LINES = "application/x-ndjson"
AUDIO_BEGIN = b'{"audio_base64": "'
AUDIO_END = b'", '
STEP_BYTES = 49_152  # a multiple of three, so that only the last part has padding
CHARACTER_BYTES = 256  # memory of the times of a character, and of their JSON
OutputFormat = Annotated[str, Query(description="such as mp3_44100_128 or pcm_24000")]


class Alignment(TypedDict):
    """Times of characters, in seconds."""

    characters: list[str]
    character_start_times_seconds: list[float]
    character_end_times_seconds: list[float]


class TimedAudio(TypedDict):
    """Audio in base64, and the times of the text's characters. The normalized text is not known, so both are equal."""

    audio_base64: str
    alignment: Alignment | None
    normalized_alignment: Alignment | None


class Voice(TypedDict):
    """Voice of the model, or one that the caller has added (`cloned`)."""

    voice_id: str
    name: str
    category: str
    labels: dict[str, str]
    description: str | None
    preview_url: str


class Voices(TypedDict):
    """All voices."""

    voices: list[Voice]


class VoicePage(TypedDict):
    """Some of the voices; `next_page_token` is null on the last page."""

    voices: list[Voice]
    has_more: bool
    total_count: int
    next_page_token: str | None


@dataclass
class Order:
    """Speech to generate. `report` receives the server's report at the end."""

    gateway: Gateway
    item: ElevenLabsItem
    options: SpeakArguments
    ignored: Ignored
    report: dict[str, Any] = field(default_factory=dict)

    def answered(self, request: Request, parts: AsyncGenerator[bytes, None], media_type: str) -> Response:
        """Return the response that consists of `parts`."""
        return answered(self.gateway, self.item, request.state, parts, media_type, self.ignored, self.report)


async def ordered(voice_id: str, body: SpeechBody, output_format: str, request: Request) -> Order:
    """Return the speech that a request asks for; raise ApiError if a field is invalid."""
    gateway = await speaking(request.app.state.gateway, body.model_id)
    ignored = Ignored(body, gateway.strict)
    body.refuse_dictionaries()
    fields: dict[str, Any] = {"input": body.text, "seed": body.seed, "language": body.language_code}
    fields["speed"] = None if body.voice_settings is None else body.voice_settings.speed
    item = await speech_item(gateway, request.state.owner, voice_id, output_format, fields, ignored)
    options = await unless_disconnected(request.receive, speech_options(gateway, item, request.state, ignored))
    return Order(gateway, item, options, ignored)


@router.post("/v1/text-to-speech/{voice_id}", response_class=Response, responses=ANSWERS)
@router.post("/v1/text-to-speech/{voice_id}/stream", response_class=Response, responses=ANSWERS)
async def speak(
    voice_id: str, body: SpeechBody, request: Request, output_format: OutputFormat = USUAL_FORMAT
) -> Response:
    """Generate the audio of `text`, chunk by chunk."""
    order = await ordered(voice_id, body, output_format, request)
    parts = audio_parts(order.gateway, order.item, order.item.input, order.options, order.ignored, order.report)
    return order.answered(request, parts, MEDIA_TYPES[order.item.response_format])


async def ordered_with_times(voice_id: str, body: SpeechBody, output_format: str, request: Request) -> Order:
    """Return the speech that a request asks for, with the times of its words if there can be any."""
    order = await ordered(voice_id, body, output_format, request)
    if not await ask_for_words(order.gateway, order.options):
        order.ignored.add("alignment", "a request without times (the server has no aligner)", "with-timestamps")
    return order


Chunks = AsyncGenerator[tuple[bytes, Times], None]


async def timed_chunks(order: Order, text: str | AsyncIterable[str], characters: CharacterTimes) -> Chunks:
    """Yield the parts of an audio file, with the times that `characters` finds for the same text."""
    parts = timed_parts(order.gateway, order.item, text, order.options, order.ignored, order.report)
    times = Times([], [], [])
    async with closing(parts):
        async for piece in parts:
            if isinstance(piece, list):
                times.extend(characters.until(piece))
                continue
            yield piece, times
            times = Times([], [], [])
    times.extend(characters.rest(order.report[FILE_S]))
    if times.characters:
        yield b"", times


def chunks_of(order: Order) -> Chunks:
    """Return the parts of the speech with the times of characters."""
    characters = CharacterTimes()
    characters.add(order.item.input)
    return timed_chunks(order, order.item.input, characters)


def times_json(times: Times) -> bytes:
    """Return times as the last members of a JSON object, after the comma."""
    alignment = json.dumps(times.in_seconds())
    return f'"alignment": {alignment}, "normalized_alignment": {alignment}}}'.encode()


async def lines(chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Yield a line of JSON for each part of the speech."""
    async with closing(chunks):
        async for audio, times in chunks:
            yield AUDIO_BEGIN + base64.b64encode(audio) + AUDIO_END + times_json(times) + b"\n"


async def whole(order: Order, asked: State) -> AsyncGenerator[bytes, None]:
    """Yield one JSON object with the complete speech and its times, in parts, so that audio is not encoded all at once.

    Args:
        asked: State of the request; `asked.keep` counts the bytes that it holds.
    """
    times = Times([], [], [])

    async def timed_audio() -> AsyncGenerator[bytes, None]:
        async with closing(chunks_of(order)) as chunks:
            async for data, further in chunks:
                asked.keep(CHARACTER_BYTES * len(further.characters))
                times.extend(further)
                yield data

    max_bytes = order.gateway.limits.max_batch_bytes
    room = AudioBudget(max_bytes, "input", f"expected a text of at most {max_bytes} bytes of audio, got a longer one")
    audio = await whole_file(order.item, timed_audio(), room, asked)
    yield AUDIO_BEGIN
    for begin in range(0, len(audio), STEP_BYTES):
        yield base64.b64encode(audio[begin : begin + STEP_BYTES])
    yield AUDIO_END
    async for data in parts_of(await AUDIO.run(times_json, times)):
        yield data


@router.post("/v1/text-to-speech/{voice_id}/with-timestamps", response_model=TimedAudio, responses=ERRORS)
async def speak_with_times(
    voice_id: str, body: SpeechBody, request: Request, output_format: OutputFormat = USUAL_FORMAT
) -> Response:
    """Generate the audio of `text`, with the times of its characters."""
    order = await ordered_with_times(voice_id, body, output_format, request)
    return order.answered(request, whole(order, request.state), "application/json")


@router.post(
    "/v1/text-to-speech/{voice_id}/stream/with-timestamps",
    response_class=Response,
    responses=described("Lines of JSON, as of with-timestamps", LINES) | ERRORS,
)
async def stream_with_times(
    voice_id: str, body: SpeechBody, request: Request, output_format: OutputFormat = USUAL_FORMAT
) -> Response:
    """Generate the audio of `text`, with the times of its characters: a line of JSON for each chunk."""
    order = await ordered_with_times(voice_id, body, output_format, request)
    return order.answered(request, lines(chunks_of(order)), LINES)


async def all_voices(request: Request) -> list[Voice]:
    """Return the model's voices and the caller's own."""
    listed = await list_voices(request)
    added = {voice["id"] for voice in listed["data"]}
    voices = list[Voice]()
    for voice in listed["voices"]:
        labels = {"language": voice["language"], "gender": voice["gender"]}
        voices.append(
            {
                "voice_id": voice["id"],
                "name": voice["name"],
                "category": "cloned" if voice["id"] in added else "premade",
                "labels": {name: label for name, label in labels.items() if label},
                "description": voice["description"] or None,
                "preview_url": f"{request.base_url}{voice['preview'].removeprefix('/')}",
            }
        )
    return voices


@router.get("/v1/voices", responses=ERRORS)
async def get_voices(request: Request) -> Voices:
    """List all voices."""
    return {"voices": await all_voices(request)}


@router.get("/v2/voices", responses=ERRORS)
async def search_voices(
    request: Request,
    search: str = "",
    page_size: Annotated[int, Query(ge=1, le=100)] = 10,
    next_page_token: Annotated[int, Query(ge=0, description="that of the previous page")] = 0,
) -> VoicePage:
    """List the voices whose name contains `search`, page by page."""
    voices = [voice for voice in await all_voices(request) if search.lower() in voice["name"].lower()]
    stop = next_page_token + page_size
    has_more = stop < len(voices)
    return {
        "voices": voices[next_page_token:stop],
        "has_more": has_more,
        "total_count": len(voices),
        "next_page_token": str(stop) if has_more else None,
    }


@router.get("/v1/voices/{voice_id}", responses=ERRORS)
async def get_voice(voice_id: str, request: Request) -> Voice:
    """Return a voice."""
    voice = next((voice for voice in await all_voices(request) if voice["voice_id"] == voice_id), None)
    if voice is None:
        raise ApiError(404, f"voice: expected a voice of /v1/voices, got {voice_id[:60]!r}", "voice", "voice_not_found")
    return voice


class KeyedRoute(APIRoute):
    """Route on a path that OpenAI's API has as well; it matches only requests with ElevenLabs' key header."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and not has_own_key(scope):
            return Match.NONE, {}
        return super().matches(scope)


class Language(TypedDict):
    """Language of a model."""

    language_id: str
    name: str


class Model(TypedDict):
    """Model of a server."""

    model_id: str
    name: str
    can_do_text_to_speech: bool
    can_do_voice_conversion: bool
    can_use_style: bool
    can_use_speaker_boost: bool
    can_be_finetuned: bool
    maximum_text_length_per_request: int
    languages: list[Language]


async def list_models(request: Request) -> list[Model]:
    """List the models of all servers that accept requests."""
    gateway: Gateway = request.app.state.gateway
    models = list[Model]()
    for server in await gateway.servers.up():
        profile = await server.catalogue.profile()
        name = server.catalogue.name_of(profile)
        models.append(
            {
                "model_id": name,
                "name": name,
                "can_do_text_to_speech": speaks(profile),
                "can_do_voice_conversion": False,
                "can_use_style": False,
                "can_use_speaker_boost": False,
                "can_be_finetuned": False,
                "maximum_text_length_per_request": gateway.limits.max_input_chars,
                "languages": [
                    {"language_id": LANGUAGE_CODES.get(language, language), "name": language.capitalize()}
                    for language in profile.languages
                ],
            }
        )
    return models


router.add_api_route("/v1/models", list_models, route_class_override=KeyedRoute, include_in_schema=False)
