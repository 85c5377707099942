"""Files that move a stored voice to another gateway, as endpoints and `stretto voices` write and read them.

    {"format": "stretto-voice", "sha256": …, "name": …, …}      a line of JSON, then the bytes of the recording

The digest is that of the line without `sha256`, with sorted keys, and of the recording.
"""

import hashlib
import json
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from stretto_gateway.answers import FILE, ApiError, Voice, described
from stretto_gateway.catalogue import expect_store, speaks, unknown_voice
from stretto_gateway.fields import Ignored, Text, TextFields, is_blank
from stretto_gateway.gateway import Gateway
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.speech_request import MAX_REF_CHARS, WITH_FILE, File
from stretto_gateway.turns import FILES
from stretto_gateway.voice_store import StoredVoice, VoiceStore
from stretto_gateway.voices import (
    MAX_CONSENT_CHARS,
    MAX_DESCRIPTION_CHARS,
    MAX_LABEL_CHARS,
    MAX_NAME_CHARS,
    clones_voices,
    keep_voice,
)

router = APIRouter()
MEDIA_TYPE = "application/octet-stream"
STORED_FIELDS = {
    "name",
    "consent",
    "ref_text",
    "language",
    "gender",
    "description",
}  # fields that a gateway stores again
MAX_HEADER_BYTES = 64 << 10  # maximum length of the JSON line
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]


class VoiceHeader(BaseModel):
    """First line of a voice's file. The digest includes the fields that this version does not know."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: Literal["stretto-voice"] = "stretto-voice"
    sha256: str = ""
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    consent: Annotated[str, Field(min_length=1, max_length=MAX_CONSENT_CHARS)]
    ref_text: Annotated[str, Field(max_length=MAX_REF_CHARS)]
    language: Label
    gender: Label
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)]

    def digest(self, recording: bytes) -> str:
        """Return the digest of the file with this header and a recording."""
        line = json.dumps(self.model_dump(exclude={"sha256"}), sort_keys=True)
        digest = hashlib.sha256(line.encode() + b"\n")
        digest.update(recording)
        return digest.hexdigest()


def write_voice(voice: StoredVoice, recording: bytes) -> bytes:
    """Return the contents of a voice's file."""
    header = VoiceHeader(
        name=voice.name,
        consent=voice.consent,
        ref_text=voice.text,
        language=voice.language,
        gender=voice.gender,
        description=voice.description,
    )
    header.sha256 = header.digest(recording)
    return json.dumps(header.model_dump()).encode() + b"\n" + recording


def read_voice(data: bytes, max_bytes: int) -> tuple[VoiceHeader, bytes]:
    """Return the header and the recording of a voice's file; raise ValueError if it is invalid or damaged."""
    line, end, recording = data[:MAX_HEADER_BYTES].partition(b"\n")
    if not end:
        raise ValueError(f"header: expected a line of at most {MAX_HEADER_BYTES} bytes, got no end of line")
    recording = data[len(line) + 1 :]
    try:
        header = VoiceHeader.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = first["loc"][0] if first["loc"] else "header"
        raise ValueError(f"{field}: expected the header of an exported voice, got an error: {first['msg']}") from None
    for field in ("name", "consent"):
        if is_blank(getattr(header, field)):
            raise ValueError(f"{field}: expected text, got white space")
    if not 0 < len(recording) <= max_bytes:
        raise ValueError(f"recording: expected 1 to {max_bytes} bytes, got {len(recording)} bytes")
    if header.sha256 != header.digest(recording):
        raise ValueError("sha256: expected the digest of the file's content, got another one (the file is damaged)")
    return header, recording


class VoiceFileForm(TextFields):
    """Multipart form that adds an exported voice."""

    file: Annotated[File, Field(description="file of an exported voice")]
    model: Text = "tts-1"


@router.get(
    "/v1/audio/voices/{voice_id}/export",
    response_class=Response,
    responses=described("File with the recording and all fields", MEDIA_TYPE, schema=FILE),
)
async def export_voice(voice_id: str, request: Request) -> Response:
    """Return a voice that the caller added, as a file for another gateway."""
    gateway: Gateway = request.app.state.gateway
    request.state.keep(2 * (MAX_HEADER_BYTES + gateway.limits.max_voice_bytes))  # of the recording, and of the file
    data = await FILES.run(exported, expect_store(gateway.voices), request.state.owner, voice_id)
    if data is None:
        raise unknown_voice(404, voice_id)
    answer = Response(data, media_type=MEDIA_TYPE)
    answer.headers[ResponseHeader.CONTENT_DISPOSITION] = f'attachment; filename="{voice_id}.voice"'
    return answer


def exported(store: VoiceStore, owner: str, voice_id: str) -> bytes | None:
    """Return the file of an owner's voice, or None if the owner has no such voice."""
    stored = store.find(owner, voice_id)
    return None if stored is None else write_voice(*stored)


@router.post("/v1/audio/voices/import")
async def import_voice(form: Annotated[VoiceFileForm, WITH_FILE], request: Request, response: Response) -> Voice:
    """Store the voice in an exported file once the model has generated audio with it."""
    gateway: Gateway = await request.app.state.gateway.for_model(form.model, clones_voices, speaks)
    response.headers.update(Ignored(form, gateway.strict).headers)
    data = await form.file.read()
    request.state.keep(len(data))  # memory of the recording, which is copied from the file
    try:
        header, recording = await FILES.run(read_voice, data, gateway.limits.max_voice_bytes)
    except ValueError as error:
        raise ApiError(400, f"file: {error}", "file", "invalid_value") from None
    return await keep_voice(gateway, form.model, request, "file", recording, **header.model_dump(include=STORED_FIELDS))
