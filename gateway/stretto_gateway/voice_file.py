"""Files that move a stored voice to another gateway (`stretto voices export` and `import`).

    {"format": "stretto-voice", "sha256": …, "name": …, …}      a line of JSON, then the bytes of the recording

The digest is that of the line without `sha256`, with sorted keys, and of the recording.
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stretto_gateway.speech_request import MAX_REF_CHARS
from stretto_gateway.voice_store import StoredVoice
from stretto_gateway.voices import MAX_CONSENT_CHARS, MAX_DESCRIPTION_CHARS, MAX_LABEL_CHARS, MAX_NAME_CHARS

MAX_HEADER_BYTES = 64 << 10  # of the line of JSON
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
        return hashlib.sha256(line.encode() + b"\n" + recording).hexdigest()


def write_voice(voice: StoredVoice, recording: bytes) -> bytes:
    """Return the file of a voice."""
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
    """Return the header and the recording of a voice's file.

    Raises:
        ValueError: The file is no voice, is damaged, or exceeds a limit.
    """
    line, end, recording = data[:MAX_HEADER_BYTES].partition(b"\n")
    if not end:
        raise ValueError(f"header: expected a line of at most {MAX_HEADER_BYTES} bytes, got a longer one")
    recording = data[len(line) + 1 :]
    try:
        header = VoiceHeader.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = first["loc"][0] if first["loc"] else "header"
        expected = "a file that stretto voices export has written"
        raise ValueError(f"{field}: expected {expected}, got an error: {first['msg']}") from None
    if not 0 < len(recording) <= max_bytes:
        raise ValueError(f"recording: expected 1 to {max_bytes} bytes, got {len(recording)} bytes")
    if header.sha256 != header.digest(recording):
        raise ValueError("sha256: expected the digest of the file's content, got another one (the file is damaged)")
    return header, recording
