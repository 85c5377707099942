"""`/v1/audio/voices`: the model's voices, and voices that callers add."""

import asyncio
import base64
import binascii
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, UploadFile
from pydantic import Field
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from stretto_client import ModelProfile, RecordedVoice, TaskProfile
from stretto_gateway.admission import unless_disconnected
from stretto_gateway.answers import ApiError, DeletedVoice, NamedId, Voice, Voices, mismatch, refused
from stretto_gateway.catalogue import aliases, find_task
from stretto_gateway.events import client_events
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech_request import MAX_REF_CHARS, WITH_FILE, Body, Ignored, SpeechFields, Text
from stretto_gateway.voice_store import ID, StoredVoice, TooManyVoices, VoiceStore

FETCHES_NOTHING = "base64 or a data: URL, because the gateway opens no URLs or files"


def read_recording(param: str, text: str, max_bytes: int) -> bytes:
    """Decode a recording in a request field.

    Args:
        param: Name of the field, for error messages.
        text: Base64, or a `data:` URL with base64.
        max_bytes: Maximum size of the file.

    Raises:
        ApiError: `text` is another kind of URL, is not base64, or is too long.
    """
    data = text
    if text[:5].lower() == "data:":
        head, _, data = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise refused(param, "a data: URL whose data is base64 (;base64)", text)
    elif "://" in text[:64] or text[:5].lower() == "file:":
        raise refused(param, FETCHES_NOTHING, text)
    if len(data) > 4 * (max_bytes + 2) // 3:
        raise mismatch(param, f"at most {max_bytes} bytes", f"{3 * len(data) // 4} bytes")
    try:
        recording = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise refused(param, FETCHES_NOTHING, text) from None
    if not 0 < len(recording) <= max_bytes:
        raise mismatch(param, f"1 to {max_bytes} bytes", f"{len(recording)} bytes")
    return recording


router = APIRouter()
FIELDS = {"audio": "audio_sample", "messages[0].text": "ref_text"}  # maps the server's field names to request fields
SAMPLE = "One, two."  # text that is spoken to test a new voice
MAX_NAME_CHARS, MAX_CONSENT_CHARS = 100, 200


class VoiceForm(Body):
    """Multipart form that adds a voice: a recording and its metadata.

    The recording may be wav, flac, ogg, mp3, webm, m4a, mp4 or aac.
    """

    audio_sample: UploadFile
    name: Annotated[Text, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    consent: Annotated[
        Text, Field(min_length=1, max_length=MAX_CONSENT_CHARS, description="statement of the speaker's consent")
    ]
    ref_text: Annotated[Text, Field(max_length=MAX_REF_CHARS, description="transcript of the recording")] = ""
    model: Text = "tts-1"


@router.get("/v1/audio/voices")
async def list_voices(request: Request) -> Voices:
    """List the model's voices, the voice that each alias selects, and the caller's own voices.

    `form` lists the fields of a request that adds a voice.
    """
    gateway: Gateway = request.app.state.gateway
    profile = await gateway.catalogue.profile()
    stored = [] if gateway.voices is None else await asyncio.to_thread(gateway.voices.all, request.state.owner)
    titles = dict(zip(profile.voices, profile.voice_titles, strict=False))
    return {
        "object": "list",
        "voices": [
            *(named(name, titles.get(name, name)) for name in profile.voices),
            *(named(each.id, each.name) for each in stored),
        ],
        "names": list(profile.voices),
        "titles": titles,
        "aliases": aliases(profile),
        "form": fields_taken(gateway, profile),
        "data": [record(voice) for voice in stored],
    }


@router.post("/v1/audio/voices")
async def create_voice(form: Annotated[VoiceForm, WITH_FILE], request: Request, response: Response) -> Voice:
    """Store the voice in a recording once the model has generated audio with it."""
    gateway: Gateway = request.app.state.gateway
    response.headers.update(Ignored(form, gateway.strict).headers)
    store = require_store(gateway)
    profile = await gateway.catalogue.model(form.model)
    task = cloning_task(profile)
    if form.ref_text and "text" not in task.system:
        expected = f"no value ({profile.family!r} does not use the transcript of a recording)"
        raise refused("ref_text", expected, form.ref_text)
    recording = await form.audio_sample.read()
    if len(recording) > gateway.limits.max_voice_bytes:
        expected = f"at most {gateway.limits.max_voice_bytes} bytes"
        raise mismatch("audio_sample", expected, f"{len(recording)} bytes")
    await unless_disconnected(request.receive, try_voice(gateway, RecordedVoice(recording, form.ref_text)))
    metadata = (form.name, form.ref_text, form.consent)
    try:
        return record(await asyncio.to_thread(store.add, request.state.owner, *metadata, recording))
    except TooManyVoices:
        message = f"there are {gateway.limits.max_voices} voices of this key, which is the limit; delete one"
        raise ApiError(400, message, code="too_many_voices") from None
    except OSError:
        raise ApiError(507, "not enough disk space for another voice", code="no_room") from None


@router.delete("/v1/audio/voices/{voice_id}")
async def delete_voice(voice_id: str, request: Request) -> DeletedVoice:
    """Delete a voice that the caller added."""
    gateway: Gateway = request.app.state.gateway
    if not await asyncio.to_thread(require_store(gateway).remove, request.state.owner, voice_id):
        raise unknown(404, voice_id)
    return {"id": voice_id, "object": "audio.voice.deleted", "deleted": True}


async def recorded_voice(
    gateway: Gateway, profile: ModelProfile, item: SpeechFields, asked: State, ignored: Ignored
) -> RecordedVoice | None:
    """Return the recorded voice that a request selects; None if it selects no recorded voice.

    Args:
        gateway: The gateway, with the stored voices.
        profile: The served model.
        item: Fields of the request; `ref_audio` takes precedence over `voice`.
        asked: State of the request, set by the guard.
        ignored: Receives the fields that this model does not support.

    Raises:
        ApiError: The caller has no such voice, the model does not clone voices, the recording is unreadable, or the
            memory limit is exceeded.
    """
    if item.ref_audio is not None or item.ref_text:
        return _recorded(gateway, profile, item, asked, ignored)
    name = item.voice_name
    if name is None or ID.fullmatch(name) is None:
        return None
    task = cloning_task(profile, "voice")
    found = await asyncio.to_thread(require_store(gateway, "voice").find, asked.owner, name)
    if found is None:
        raise unknown(400, name)
    voice, recording = found
    asked.keep(len(recording))
    return RecordedVoice(recording, voice.text if "text" in task.system else "")


def _recorded(
    gateway: Gateway, profile: ModelProfile, item: SpeechFields, asked: State, ignored: Ignored
) -> RecordedVoice | None:
    """Return the voice in `ref_audio`; None if there is none or the model does not clone voices."""
    system = find_task(profile, ("tts",), "text to speech").system
    text = item.ref_text or ""
    if text and ("text" not in system or item.ref_audio is None):
        ignored.add("ref_text", "no value without ref_audio, or if the model does not use it", text)
        text = ""
    if item.ref_audio is None:
        return None
    if "audio" not in system:
        ignored.add("ref_audio", f"no value ({profile.family!r} does not clone voices)", item.ref_audio)
        return None
    recording = read_recording("ref_audio", item.ref_audio, gateway.limits.max_voice_bytes)
    asked.keep(len(recording))
    return RecordedVoice(recording, text)


async def try_voice(gateway: Gateway, voice: RecordedVoice) -> None:
    """Generate the first audio with a voice; raise ApiError if that fails."""
    async with gateway.admission.slot():
        speech = gateway.client.speak(SAMPLE, voice=voice)
        async with aclosing(client_events(speech, FIELDS)) as events:
            await anext(events, None)


def cloning_task(profile: ModelProfile, param: str = "model") -> TaskProfile:
    """Return the task that clones recorded voices; raise ApiError for the field `param` if there is none."""
    task = find_task(profile, ("tts",), "text to speech")
    if "audio" not in task.system:
        message = f"{param}: {profile.family!r} does not clone voices"
        raise ApiError(400, message, param, "unsupported")
    return task


def fields_taken(gateway: Gateway, profile: ModelProfile) -> list[str]:
    """Return the names of the fields that add a voice, except `model`; empty if voices cannot be added."""
    try:
        require_store(gateway)
        task = cloning_task(profile)
    except ApiError:
        return []
    without = {"model"} if "text" in task.system else {"model", "ref_text"}
    return [name for name in VoiceForm.model_fields if name not in without]


def require_store(gateway: Gateway, param: str | None = None) -> VoiceStore:
    """Return the voice store; raise ApiError for the field `param` if the gateway has none."""
    if gateway.voices is None:
        message = "voice: this gateway stores no voices; start it with --voices FOLDER"
        raise ApiError(400, message, param, "unsupported")
    return gateway.voices


def unknown(status: int, voice_id: str) -> ApiError:
    """Return the error for an unknown id. Voices that belong to other callers give the same error."""
    return ApiError(status, f"voice: unknown voice {voice_id[:60]!r}", "voice", "voice_not_found")


def named(voice_id: str, name: str) -> NamedId:
    """Return a voice in the format that Open WebUI expects."""
    return {"id": voice_id, "name": name}


def record(voice: StoredVoice) -> Voice:
    """Return the API's object for a stored voice."""
    return {
        "id": voice.id,
        "object": "audio.voice",
        "name": voice.name,
        "consent": voice.consent,
        "ref_text": voice.text,
        "created_at": voice.created_at,
    }
