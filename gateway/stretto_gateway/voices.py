"""`/v1/audio/voices`: the model's voices, and voices that callers add."""

import base64
from contextlib import aclosing
from functools import partial
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter
from pydantic import Field
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from stretto_client import ModelProfile, RecordedVoice, TaskProfile
from stretto_client.voices import MarkedVoices
from stretto_contract.voice_details import UNKNOWN_VOICE, VoiceDetails
from stretto_gateway.admission import unless_disconnected
from stretto_gateway.answers import ApiError, DeletedVoice, ListedVoice, Voice, Voices, error_path, mismatch, refused
from stretto_gateway.base64_data import FETCHES_NOTHING, read_base64
from stretto_gateway.catalogue import (
    CallersVoices,
    VoiceFile,
    aliases,
    clones,
    expect_store,
    find_task,
    has_voice,
    no_cloning,
    plain_name,
    speaks,
    unknown_voice,
)
from stretto_gateway.events import client_events
from stretto_gateway.fields import Ignored, Text, TextFields
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech_request import MAX_REF_CHARS, WITH_FILE, File, SpeechFields
from stretto_gateway.turns import FILES
from stretto_gateway.voice_store import StoredVoice, TooManyVoices

router = APIRouter()
SAMPLE = "One, two."  # text that is spoken to test a new voice
MAX_NAME_CHARS = 100
MAX_CONSENT_CHARS = 200
MAX_LABEL_CHARS = 40
MAX_DESCRIPTION_CHARS = 500


class VoiceForm(TextFields):
    """Multipart form that adds a voice: a recording and its metadata.

    The recording may be wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac.
    """

    audio_sample: File
    name: Annotated[Text, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    consent: Annotated[
        Text, Field(min_length=1, max_length=MAX_CONSENT_CHARS, description="statement of the speaker's consent")
    ]
    ref_text: Annotated[Text, Field(max_length=MAX_REF_CHARS, description="transcript of the recording")] = ""
    language: Annotated[Text, Field(max_length=MAX_LABEL_CHARS, description="name or code, not checked")] = ""
    gender: Annotated[Text, Field(max_length=MAX_LABEL_CHARS)] = ""
    description: Annotated[Text, Field(max_length=MAX_DESCRIPTION_CHARS, description="sound and manner")] = ""
    model: Text = "tts-1"


@router.get("/v1/audio/voices")
async def list_voices(request: Request, model: str = "") -> Voices:
    """List the model's voices, the voice that each alias selects, and the caller's own voices.

    `form` lists the fields of a request that adds a voice. `model` selects one of several models.
    """
    gateway: Gateway = await request.app.state.gateway.for_model(model, speaks)
    profile = await gateway.catalogue.profile()
    stored = [] if gateway.voices is None else await FILES.run(gateway.voices.all, request.state.owner)
    # a caller's own voice takes precedence over an alias
    stored_names = {plain_name(voice.name) for voice in stored if any(map(clones, profile.tasks))}
    return {
        "object": "list",
        "voices": [
            *(named(name, name, profile.voice_details.get(name, UNKNOWN_VOICE), model) for name in profile.voices),
            *(named(voice.id, voice.name, voice, model) for voice in stored),
        ],
        "names": list(profile.voices),
        "aliases": {name: voice for name, voice in aliases(profile).items() if name not in stored_names},
        "form": fields_taken(gateway, profile),
        "data": [record(voice) for voice in stored],
    }


@router.post("/v1/audio/voices")
async def create_voice(form: Annotated[VoiceForm, WITH_FILE], request: Request, response: Response) -> Voice:
    """Store the voice in a recording once the model has generated audio with it."""
    gateway: Gateway = await request.app.state.gateway.for_model(form.model, clones_voices, speaks)
    response.headers.update(Ignored(form, gateway.strict).headers)
    recording = await form.audio_sample.read()
    if len(recording) > gateway.limits.max_voice_bytes:
        expected = f"at most {gateway.limits.max_voice_bytes} bytes"
        raise mismatch("audio_sample", expected, f"{len(recording)} bytes")
    fields = form.model_dump(exclude={"audio_sample", "model"})
    return await keep_voice(gateway, form.model, request, "audio_sample", recording, **fields)


async def keep_voice(
    gateway: Gateway,
    model: str,
    request: Request,
    field: str,
    recording: bytes,
    *,
    name: str,
    consent: str,
    ref_text: str,
    **details: str,
) -> Voice:
    """Store a voice once the model has generated audio with it; errors name the `field` of the recording."""
    store = expect_store(gateway.voices)
    profile = await gateway.catalogue.model(model)
    task = cloning_task(profile)
    check_name(profile, name)
    if ref_text and "text" not in task.system:
        expected = f"no value ({profile.family!r} does not use the transcript of a recording)"
        raise refused("ref_text", expected, ref_text)
    await unless_disconnected(request.receive, try_voice(gateway, RecordedVoice(recording, ref_text), field))
    try:
        return record(await FILES.run(store.add, request.state.owner, name, ref_text, consent, recording, **details))
    except TooManyVoices:
        message = f"there are {gateway.limits.max_voices} voices of this key, which is the limit; delete one"
        raise ApiError(400, message, code="too_many_voices") from None


@router.delete("/v1/audio/voices/{voice_id}")
async def delete_voice(voice_id: str, request: Request) -> DeletedVoice:
    """Delete a voice that the caller added."""
    gateway: Gateway = request.app.state.gateway
    if not await FILES.run(expect_store(gateway.voices).remove, request.state.owner, voice_id):
        raise unknown_voice(404, voice_id)
    return {"id": voice_id, "object": "audio.voice.deleted", "deleted": True}


async def choose_voice(
    gateway: Gateway, profile: ModelProfile, item: SpeechFields, asked: State, ignored: Ignored
) -> VoiceFile | str | None:
    """Return the recorded voice that a request selects, the model's name of a voice, or None for the default.

    `ref_audio` takes precedence over `voice`. ApiError is raised if the voice is unknown or cannot be used.
    """
    task = find_task(profile, ("tts",), "text to speech")
    voice: VoiceFile | str | None = await _reference(gateway, profile, task, item, asked, ignored)
    if voice is None:
        voice = await CallersVoices(gateway.voices, asked.owner).choose(profile, task, item.voice_name)
    elif item.voice_name is not None:
        ignored.record("voice")  # also accepted by a strict gateway, because OpenAI's clients require a voice
    if isinstance(voice, VoiceFile):
        asked.keep(len(voice.audio))
    return voice


def marked_voices(gateway: Gateway, profile: ModelProfile, asked: State, field: str) -> MarkedVoices:
    """Return the voices that marks in a text may select."""
    voices = CallersVoices(gateway.voices, asked.owner)
    task = find_task(profile, ("tts",), "text to speech")

    async def find(name: str) -> VoiceFile | str | None:
        with error_path(field):
            voice = await voices.choose(profile, task, name)
        if isinstance(voice, VoiceFile):
            asked.keep(len(voice.audio))
        return voice

    return MarkedVoices(find)


async def _reference(
    gateway: Gateway, profile: ModelProfile, task: TaskProfile, item: SpeechFields, asked: State, ignored: Ignored
) -> VoiceFile | None:
    """Return the voice in `ref_audio`; None if there is none or the model does not clone voices."""
    audio = item.ref_audio
    text = item.ref_text or ""
    if text and ("text" not in task.system or audio is None):
        ignored.add("ref_text", "no value without ref_audio, or if the model does not use it", text)
        text = ""
    if audio is None:
        return None
    if not clones(task):
        ignored.add("ref_audio", f"no value ({profile.family!r} does not clone voices)", audio)
        return None
    if gateway.audio_hosts.is_fetched(audio):
        gateway.metrics.usage.current.check()
        recording = await gateway.audio_hosts.fetch("ref_audio", audio, asked.keep)
        item.ref_audio = base64.b64encode(recording).decode()  # so that several utterances fetch it once
    else:
        recording = read_base64("ref_audio", audio, FETCHES_NOTHING)
    max_bytes = gateway.limits.max_voice_bytes
    if not 0 < len(recording) <= max_bytes:
        expected = f"at most {max_bytes} bytes" if recording else f"1 to {max_bytes} bytes"
        raise mismatch("ref_audio", expected, f"{len(recording)} bytes")
    return VoiceFile(recording, text)


async def try_voice(gateway: Gateway, voice: RecordedVoice, field: str) -> None:
    """Generate the first audio with a voice; raise ApiError for the recording's `field` if that fails."""
    fields = {"audio": field, "messages[0].audio": field, "messages[0].text": "ref_text"}
    async with gateway.slot():
        begin = partial(gateway.client.speak, SAMPLE, voice=voice)
        async with aclosing(client_events(begin, fields, gateway.queue)) as events:
            await anext(events, None)


def clones_voices(profile: ModelProfile) -> bool:
    """Return True if the model speaks in recorded voices."""
    task = profile.task("tts")
    return task is not None and clones(task)


def cloning_task(profile: ModelProfile) -> TaskProfile:
    """Return the task that speaks in recorded voices; raise ApiError for the field `model` if there is none."""
    task = find_task(profile, ("tts",), "text to speech")
    if not clones(task):
        raise no_cloning(profile, "model")
    return task


def check_name(profile: ModelProfile, name: str) -> None:
    """Raise ApiError if the model has a voice with that name, because a request could not select between them."""
    if has_voice(profile, name):
        raise refused("name", f"a name that no voice of {profile.family!r} has", name)


def fields_taken(gateway: Gateway, profile: ModelProfile) -> list[str]:
    """Return the names of the fields that add a voice, except `model`; empty if voices cannot be added."""
    try:
        expect_store(gateway.voices)
        task = cloning_task(profile)
    except ApiError:
        return []
    without = {"model"} if "text" in task.system else {"model", "ref_text"}
    return [name for name in VoiceForm.model_fields if name not in without]


def named(voice_id: str, name: str, details: VoiceDetails | StoredVoice, model: str) -> ListedVoice:
    """Return a voice in the format that Open WebUI expects, with its details and the path of its preview by a model."""
    query = f"?model={quote(model)}" if model else ""
    return {
        "id": voice_id,
        "name": name,
        "preview": f"/v1/audio/voices/{quote(voice_id)}/preview{query}",
        "language": details.language,
        "gender": details.gender,
        "description": details.description,
    }


def record(voice: StoredVoice) -> Voice:
    """Return the API's object for a stored voice."""
    return {
        "id": voice.id,
        "object": "audio.voice",
        "type": "audio_sample",
        "name": voice.name,
        "consent": voice.consent,
        "ref_text": voice.text,
        "created_at": voice.created_at,
        "language": voice.language,
        "gender": voice.gender,
        "description": voice.description,
    }
