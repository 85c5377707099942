"""Receipts of generated speech: the data with which to generate it again, and digests of the result.

A receipt is a JSON object, which `signature.py` signs.
"""

import base64
import binascii
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NotRequired, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from stretto_client.speech_stream import SpeechEvent
from stretto_client.tags import MAX_VOICE_CHARS
from stretto_client.voices import MAX_MARKED_VOICES, MarkedVoices, RecordedVoice
from stretto_contract.finish_reasons import STOP, limit_of
from stretto_contract.schema import SpeechOptions

FORMAT = "stretto-receipt-1"
MAX_RECEIPT_BYTES = 1 << 19
MAX_CHECKED_FRAMES = 1 << 16  # first frames of the speech, each with its own check; later frames have none
CHECK_BYTES = 2  # size of the check of a frame
MAX_REDRAWN_CLAUSES = 1 << 13
SHA256 = re.compile("[0-9a-f]{64}")
# Arguments of `SpeechClient.speak` that a receipt does not list: they do not determine the codes, or only through
# `redraws`, or they have a field of their own.
LEFT_OUT = {
    *("voice", "voices", "seed", "encoding", "output", "rates", "words"),
    *("check", "attempts", "hold_s", "check_with"),
}
ARGUMENTS = {"task", "sample_rate", "markup", "join", *SpeechOptions.__annotations__} - LEFT_OUT


class ReceiptError(ValueError):
    """Raised if a receipt, a key or a signature is invalid."""


class CodesRecord(TypedDict):
    """Digests of codes.

    Attributes:
        sha256: SHA-256 of all frames in order, each as the codes of its streams, int32 in little-endian order.
        checks: Base64 of the first CHECK_BYTES bytes of the SHA-256 of each of the first MAX_CHECKED_FRAMES frames.
    """

    sha256: str
    frames: int
    streams: int
    checks: str


class FileRecord(TypedDict):
    """File that was sent: its format, size, and SHA-256."""

    format: str
    bytes: int
    sha256: str
    speed: float


class VoiceRecord(TypedDict):
    """Digests of a voice's recording and of its transcript."""

    sha256: str
    text_sha256: str


class Receipt(TypedDict):
    """Contents of a receipt.

    Attributes:
        id: The response's `x-request-id`; empty for speech of a client.
        time: Time at which the speech was complete, in UTC.
        model: Server's description of its model, with `numerics`, which identifies how the server rounds.
        text_sha256: SHA-256 of the text in UTF-8.
        arguments: Arguments of `SpeechClient.speak` that determine the codes.
        voice: Name of a voice, or the digests of a recording; None for the default.
        marked_voices: The same for each name in a mark of the text.
        redraws: Option `redraw_from` of each clause's last attempt (`docs/checks.md`); empty if all attempts were the
            first ones.
        samples: Number of samples before `speed`.
    """

    format: str
    id: str
    time: str
    model: dict[str, str]
    text_sha256: str
    arguments: dict[str, Any]
    voice: str | VoiceRecord | None
    marked_voices: dict[str, str | VoiceRecord | None]
    seed: int
    redraws: list[list[int]]
    codes: CodesRecord
    sample_rate: int
    samples: int
    finish_reason: str
    file: NotRequired[FileRecord]


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text; it may have lone surrogates."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


class CodeDigest:
    """Digest of the codes of a speech, updated with each event."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._checks = bytearray()
        self.num_frames = 0
        self._num_streams = 0

    def add(self, codes: NDArray[np.int32]) -> None:
        """Add codes [S, T]."""
        self._num_streams = len(codes)
        for frame in np.ascontiguousarray(codes.T, "<i4"):
            data = frame.tobytes()
            self._whole.update(data)
            if self.num_frames < MAX_CHECKED_FRAMES:
                self._checks += hashlib.sha256(data).digest()[:CHECK_BYTES]
            self.num_frames += 1

    def record(self) -> CodesRecord:
        """Return the digests of the codes so far."""
        return {
            "sha256": self._whole.hexdigest(),
            "frames": self.num_frames,
            "streams": self._num_streams,
            "checks": base64.b64encode(self._checks).decode(),
        }


def frame_checks(record: CodesRecord) -> NDArray[np.uint16]:
    """Return the checks of the frames in a record of codes, [n]."""
    return np.frombuffer(base64.b64decode(record["checks"]), np.uint16)


class SpeechRecorder:
    """Recorder of the data that the receipt of a speech contains."""

    def __init__(self, text: str, model: Mapping[str, str], request_id: str = ""):
        self._text_sha256 = text_digest(text)
        self._model = dict(model)
        self._request_id = request_id
        self.arguments: Mapping[str, Any] = {}
        self._codes = CodeDigest()
        self._num_samples = 0
        self._sample_rate = 0
        self._report: Mapping[str, Any] = {}

    def add(self, event: SpeechEvent) -> None:
        """Add the next event, which has codes if it has samples."""
        if event.codes is not None and event.codes.size:
            self._codes.add(event.codes)
        if event.pcm is not None:
            self._num_samples += len(event.pcm)
        self._sample_rate = event.sample_rate or self._sample_rate
        self._report = event.report or self._report

    def receipt(self, file: FileRecord | None = None) -> Receipt:
        """Return the receipt of the complete speech, with the record of the file that was sent."""
        marked: MarkedVoices | None = self.arguments.get("voices")
        redraws = self._report.get("redraw_from", [])
        receipt: Receipt = {
            "format": FORMAT,
            "id": self._request_id,
            "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "model": self._model,
            "text_sha256": self._text_sha256,
            "arguments": {
                name: value for name, value in self.arguments.items() if name in ARGUMENTS and value is not None
            },
            "voice": voice_record(self.arguments.get("voice")),
            "marked_voices": {} if marked is None else {name: voice_record(voice) for name, voice in marked.chosen},
            "seed": self._report.get("seed", 0),
            "redraws": redraws if any(redraws) else [],
            "codes": self._codes.record(),
            "sample_rate": self._sample_rate,
            "samples": self._num_samples,
            "finish_reason": limit_of(self._report) or STOP,
        }
        return receipt if file is None else {**receipt, "file": file}


def voice_record(voice: str | RecordedVoice | None) -> str | VoiceRecord | None:
    """Return a voice, or the digests of a recorded one, whose audio is the content of a file."""
    if not isinstance(voice, RecordedVoice):
        return voice
    assert isinstance(voice.audio, bytes)
    return {"sha256": hashlib.sha256(voice.audio).hexdigest(), "text_sha256": text_digest(voice.text)}


def write_receipt(receipt: Receipt) -> bytes:
    """Return a receipt as JSON."""
    return json.dumps(receipt, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def strict_json(data: bytes, name: str) -> dict[str, Any]:
    """Return a JSON object; raise ReceiptError if it is malformed, repeats a key or has a number that is not finite."""
    if len(data) > MAX_RECEIPT_BYTES:
        raise ReceiptError(f"{name}: expected at most {MAX_RECEIPT_BYTES} bytes, got {len(data)}")
    try:
        record = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ReceiptError(f"{name}: expected a JSON object, got invalid JSON ({reason:.100})") from None
    if not isinstance(record, dict):
        raise ReceiptError(f"{name}: expected a JSON object, got {shown(record)}")
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:40]!r} occurs twice")
    return record


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


def _finite(word: str) -> float:
    number = float(word)
    if not np.isfinite(number):
        raise ValueError(f"{word[:40]} is too large")
    return number


def shown(value: object) -> str:
    """Return a short representation of an untrusted value, in ASCII."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


@dataclass(frozen=True)
class Field:
    """Condition for the value of a record's field, and its description in errors."""

    expected: str
    admits: Callable[[Any], bool]
    is_required: bool = True


def is_integer(low: int, high: int) -> Callable[[Any], bool]:
    """Return a function that returns True for integers from `low` to `high`."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_text(max_chars: int) -> Callable[[Any], bool]:
    """Return a function that returns True for printable texts of at most `max_chars` characters."""
    return lambda value: isinstance(value, str) and value.isprintable() and len(value) <= max_chars


def is_digest(value: Any) -> bool:
    """Return True for a SHA-256 in hexadecimal digits."""
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def is_model(value: Any) -> bool:
    """Return True for a valid description of a model."""
    admits = is_text(400)
    return isinstance(value, dict) and len(value) <= 16 and all(map(admits, (*value.keys(), *value.values())))


def is_speed(value: Any) -> bool:
    """Return True for a valid speed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100


def is_redraws(value: Any) -> bool:
    """Return True for valid `redraw_from` lists."""
    is_frame = is_integer(0, 1 << 31)
    return (
        isinstance(value, list)
        and len(value) <= MAX_REDRAWN_CLAUSES
        and all(isinstance(frames, list) and len(frames) <= 16 and all(map(is_frame, frames)) for frames in value)
    )


def is_voice(value: Any) -> bool:
    """Return True for a voice: a name, digests or None."""
    if isinstance(value, dict):
        return value.keys() == {"sha256", "text_sha256"} and all(map(is_digest, value.values()))
    return value is None or is_text(1000)(value)


def is_marked_voices(value: Any) -> bool:
    """Return True for voices by the names in the marks of a text."""
    return (
        isinstance(value, dict)
        and len(value) <= MAX_MARKED_VOICES
        and all(len(name) <= MAX_VOICE_CHARS for name in value)
        and all(map(is_voice, value.values()))
    )


def is_checks(value: Any) -> bool:
    """Return True for the base64 of a whole number of checks."""
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        return False
    return data is not None and len(data) % CHECK_BYTES == 0 and len(data) <= CHECK_BYTES * MAX_CHECKED_FRAMES


DIGEST = Field("64 hexadecimal digits", is_digest)
COUNT = Field("an integer of at least 0", is_integer(0, 1 << 48))
OBJECT = Field("an object", lambda value: isinstance(value, dict))
WORD = Field("printable text", is_text(200))
FIELDS = {
    "format": Field(repr(FORMAT), lambda value: value == FORMAT),
    "id": WORD,
    "time": WORD,
    "model": Field("an object of printable texts", is_model),
    "text_sha256": DIGEST,
    "arguments": Field(
        "an object of arguments that determine speech",
        lambda value: isinstance(value, dict) and value.keys() <= ARGUMENTS,
    ),
    "voice": Field("a name, the two digests of a recording, or null", is_voice),
    "marked_voices": Field(f"voices by at most {MAX_MARKED_VOICES} names in marks", is_marked_voices),
    "seed": Field("an integer from 0 to 2^63 - 1", is_integer(0, (1 << 63) - 1)),
    "redraws": Field("lists of frames", is_redraws),
    "codes": OBJECT,
    "sample_rate": Field("a rate from 1 to 384000 Hz", is_integer(1, 384_000)),
    "samples": COUNT,
    "finish_reason": WORD,
    "file": Field("an object", lambda value: isinstance(value, dict), is_required=False),
}
CODES = {"sha256": DIGEST, "frames": COUNT, "streams": COUNT, "checks": Field("base64 of checks", is_checks)}
FILE = {"format": WORD, "bytes": COUNT, "sha256": DIGEST, "speed": Field("a number above 0", is_speed)}


def read_receipt(data: bytes) -> Receipt:
    """Return a receipt from JSON; raise ReceiptError if it is invalid."""
    record = strict_json(data, "receipt")
    check_fields("receipt", record, FIELDS)
    check_fields("receipt.codes", record["codes"], CODES)
    if "file" in record:
        check_fields("receipt.file", record["file"], FILE)
    receipt = cast(Receipt, record)
    num_checks = len(frame_checks(receipt["codes"]))
    expected = min(receipt["codes"]["frames"], MAX_CHECKED_FRAMES)
    if num_checks != expected:
        raise ReceiptError(f"receipt.codes.checks: expected {expected} checks, got {num_checks}")
    return receipt


def check_fields(path: str, record: dict[str, Any], fields: Mapping[str, Field]) -> None:
    """Raise ReceiptError if a field is missing, unknown or invalid."""
    for name in record.keys() - fields.keys():
        raise ReceiptError(f"{path}: expected no field {shown(name)}")
    for name, field in fields.items():
        if name not in record:
            if field.is_required:
                raise ReceiptError(f"{path}.{name}: expected {field.expected}, got nothing")
        elif not field.admits(record[name]):
            raise ReceiptError(f"{path}.{name}: expected {field.expected}, got {shown(record[name])}")
