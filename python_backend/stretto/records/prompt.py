"""Prompts, and parts of streamed text and live audio, as the preprocessor sends them to the language model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from hashlib import blake2b
from typing import Annotated, Any, NotRequired, get_type_hints

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from stretto.errors import InvalidRequest
from stretto.records.chunk import Alignment, Sound
from stretto.records.json_record import JsonRecord, Packed, PackedRecord, read_json, string
from stretto.records.sampling import Delivery, SamplingConfig

Int32 = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
MAX_FIRST_FRAMES = 2  # that the engine decodes
MAX_AUDIO_S = 1e9  # far above every limit; infinity is not accepted


@dataclass(frozen=True, slots=True)
class InputAudio:
    """Audio input for the model's audio encoder, whose output replaces placeholder rows of a prompt.

    Attributes:
        first_row: Index of the first placeholder row.
        num_rows: Number of placeholder rows.
        features: Encoder input, float32 [F, M]: F frames of M mel bins, or the x-vector [1, H] of a cloned voice.
    """

    first_row: int
    num_rows: int
    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class InputImage:
    """Image for the model's image encoder, whose output replaces placeholder rows of a prompt.

    The rows form a grid, in reading order. The encoder determines their positions in the backbone.

    Attributes:
        first_row: Index of the first placeholder row.
        height: Number of lines of the grid.
        width: Number of prompt rows in each line of the grid.
        features: Encoder input, float32 [F, M]: F patches of M numbers, or hidden states of another model.
    """

    first_row: int
    height: int
    width: int
    features: NDArray[np.float32]

    @property
    def num_rows(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Vectors that condition all rows of a request (`family.mechanism.RequestConditions`).

    Speaker vectors may be personal data, so the `repr`, which may be logged, omits them.

    Attributes:
        ids: Rows of the table of vectors that are added to the embedding of every row.
        vectors: Speaker vectors for cross-attention, float32 [n, W]; n may be less than the model's maximum.
    """

    ids: tuple[int, ...]
    vectors: NDArray[np.float32] = field(repr=False)

    @property
    def digest(self) -> bytes:
        sizes = f"{self.ids} {self.vectors.shape} ".encode()
        return blake2b(sizes + self.vectors.astype("<f4", copy=False).tobytes()).digest()


@dataclass(frozen=True, slots=True)
class SourceWord:
    """Word of a request's text, which the model may speak as several words.

    Attributes:
        word: The word, as it is spelled in the text.
        start: Index of its first character.
        end: Index of the character after it.
    """

    word: str
    start: Annotated[int, Meta(ge=0)]
    end: Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of P rows and the parameters of its reply.

    Attributes:
        rows: Absolute token ids of every input stream (input-only streams last), with delays applied, int32 [P, S].
        words: Words to speak, for word times; empty if the family does not support them.
        sources: For each of `words`, the word of the request's text to which it belongs; empty if unknown.
        audios: Audio inputs for the encoder, in prompt order.
        images: Images for the encoder, in prompt order.
        num_first_frames: Number of frames at the start of the reply that the engine decodes, too.
        delayed_tail: Ids of streams 1 to S - 1 in the first n reply rows, until the first new frame of each stream,
            int32 [n, S - 1]. Only for a reply that continues audio of the prompt.
        track: Ids of the streamed text for the first reply rows, including the end id if the text is complete.
        is_open: True if the client will send more text while the reply is generated.
        opening: Beginning of the streamed text, if it is not yet in `track`. Its first token belongs to the last prompt
            row.
        num_reference_rows: Number of frames at the prompt's end that the decoder reads before the reply's first one,
            such as frames of a cloned voice. Their delayed codes may be in `delayed_tail`.
        voice: Index in the codec's voices, 0 for a codec without voices; in a `SpokenTask`, index in `Family.voices`.
        input_audio_s: Duration of all recordings in the request.
        alignment: Request for word times from the decoder's aligner; None if they were not requested.
        sound: Voice recording for the decoder, if one is used instead of `voice`.
        num_pieces: Number of pieces of the text, of which the reply speaks one.
        has_empty_reply: True if the reply is empty because the recording to transcribe contains no speech. The model is
            not used.
        spellings: Replacements for words of the streamed text. In a complete text, the preprocessor has replaced them.
        has_ceiling: True if the maximum number of audio rows depends on the text, and was not set by the request.
        pauses_s: Total duration of the pauses marked in the text.
        beginning: Beginning of the reply's text, in the last prompt rows, if a further request may continue the reply.
    """

    task: str
    rows: NDArray[np.int32]
    sampling: SamplingConfig
    words: tuple[str, ...] = ()
    delivery: Delivery = field(default_factory=Delivery)
    audios: tuple[InputAudio, ...] = ()
    delayed_tail: NDArray[np.int32] | None = None
    track: tuple[Int32, ...] = ()
    is_open: bool = False
    num_reference_rows: Annotated[int, Meta(ge=0)] = 0
    opening: str = ""
    adapter: str | None = None
    voice: Annotated[int, Meta(ge=0)] = 0
    input_audio_s: Annotated[float, Meta(ge=0, le=MAX_AUDIO_S)] = 0.0
    alignment: Alignment | None = None
    sound: Sound | None = None
    condition: Condition | None = None
    num_pieces: Annotated[int, Meta(ge=1)] = 1
    sources: tuple[SourceWord, ...] = ()
    has_empty_reply: bool = False
    spellings: dict[str, str] = field(default_factory=dict)
    images: tuple[InputImage, ...] = ()
    num_first_frames: Annotated[int, Meta(ge=0, le=MAX_FIRST_FRAMES)] = 0
    has_ceiling: bool = False
    pauses_s: Annotated[float, Meta(ge=0, le=MAX_AUDIO_S)] = 0.0
    beginning: str | None = None

    @property
    def features(self) -> NDArray[np.float32] | None:
        """Encoder input of all `audios`, concatenated, [sum of F, M]; None if there are none."""
        return np.concatenate([audio.features for audio in self.audios]) if self.audios else None

    @property
    def patches(self) -> NDArray[np.float32] | None:
        """Encoder input of all `images`, concatenated, [sum of F, M]; None if there are none."""
        return np.concatenate([image.features for image in self.images]) if self.images else None

    @property
    def inputs(self) -> "tuple[InputAudio | InputImage, ...]":
        """Audio inputs and images, in prompt order."""
        return tuple(sorted((*self.audios, *self.images), key=lambda model_input: model_input.first_row))

    def reference_ids(self, stream: int, delay: int) -> NDArray[np.int32]:
        """Return the ids of the reference frames on stream `stream`, which is delayed by `delay` rows, int32 [n]."""
        first = len(self.rows) - self.num_reference_rows + delay
        ids = self.rows[:, stream]
        if self.delayed_tail is not None and stream:
            ids = np.concatenate([ids, self.delayed_tail[:, stream - 1]])
        return ids[first : first + self.num_reference_rows]

    @property
    def codes(self) -> NDArray[np.int32]:
        """Ids of streams 1 to S - 1 in the prompt rows and `delayed_tail`, int32 [P + n, S - 1]."""
        codes = self.rows[:, 1:]
        return codes if self.delayed_tail is None else np.concatenate([codes, self.delayed_tail])

    def to_bytes(self) -> bytes:
        """Return everything except `rows`, `features` and `patches` as MessagePack."""
        spans = tuple(AudioSpan(audio.first_row, audio.num_rows, len(audio.features)) for audio in self.audios)
        grids = tuple(
            ImageSpan(image.first_row, image.height, image.width, len(image.features)) for image in self.images
        )
        arrays = {
            "audios": spans,
            "images": grids,
            "delayed_tail": None if self.delayed_tail is None else self.delayed_tail.tolist(),
            "condition": None if self.condition is None else ConditionRecord.of(self.condition),
        }
        return _PACKED.write({name: getattr(self, name) for name in _RECORD} | arrays)

    @classmethod
    def from_bytes(
        cls,
        field: str,
        data: bytes,
        rows: NDArray[np.int32],
        features: NDArray[np.float32] | None = None,
        patches: NDArray[np.float32] | None = None,
    ) -> "Prompt":
        """Return the prompt that consists of a result of `to_bytes` and arrays; raise InvalidRequest if one is invalid.

        Args:
            field: Name of the input in error messages.
            rows: Prompt rows, int32 [P, S].
            features: Encoder input of all audio inputs, float32 [sum of F, M].
            patches: Encoder input of all images, float32 [sum of F, M].
        """
        record = _PACKED.read(field, data)
        audios = _parts(f"{field}.audios", record.audios, features)
        images = _parts(f"{field}.images", record.images, patches)
        arrays = {
            "audios": tuple(InputAudio(span.first_row, span.num_rows, features) for span, features in audios),
            "images": tuple(InputImage(span.first_row, span.height, span.width, patches) for span, patches in images),
            "delayed_tail": None if record.delayed_tail is None else _delayed_tail(field, record.delayed_tail, rows),
            "condition": None if record.condition is None else record.condition.read(f"{field}.condition"),
        }
        return cls(rows=rows, **{name: getattr(record, name) for name in _RECORD} | arrays)


@dataclass(frozen=True, slots=True)
class AudioSpan:
    """InputAudio with the number of its feature frames instead of the features."""

    first_row: Annotated[int, Meta(ge=0)]
    num_rows: Annotated[int, Meta(ge=1)]
    num_frames: Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """InputImage with the number of its feature frames instead of the features."""

    first_row: Annotated[int, Meta(ge=0)]
    height: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]
    num_frames: Annotated[int, Meta(ge=1)]


MAX_CONDITION_BYTES = 1 << 24
MAX_CONDITION_WIDTH = 1 << 16
MAX_MAGNITUDE = 10_000.0  # maximum in speaker vectors, so that values stay finite in KV blocks that others reuse


@dataclass(frozen=True, slots=True)
class ConditionRecord:
    """Serialised form of a Condition: with float32 `vectors` as bytes, and their `width`."""

    ids: tuple[Int32, ...]
    vectors: Annotated[bytes, Meta(max_length=MAX_CONDITION_BYTES)] = field(repr=False)
    width: Annotated[int, Meta(ge=1, le=MAX_CONDITION_WIDTH)]

    @classmethod
    def of(cls, condition: Condition) -> "ConditionRecord":
        return cls(condition.ids, condition.vectors.astype("<f4", copy=False).tobytes(), condition.vectors.shape[1])

    def read(self, name: str) -> Condition:
        """Return the condition; raise InvalidRequest about the field `name` if a vector is incomplete."""
        size = 4 * self.width
        if len(self.vectors) % size:
            raise InvalidRequest(f"{name}.vectors", f"a multiple of {size} bytes", f"{len(self.vectors)} bytes")
        return Condition(tuple(self.ids), np.frombuffer(self.vectors, "<f4").reshape(-1, self.width))


# Types of the fields of a serialised Prompt: without `rows` and `features`, and without arrays.
_RECORD: dict[str, Any] = {
    name: hint for name, hint in get_type_hints(Prompt, include_extras=True).items() if name != "rows"
} | {
    "audios": tuple[AudioSpan, ...],
    "images": tuple[ImageSpan, ...],
    "delayed_tail": list[list[Int32]] | None,
    "condition": ConditionRecord | None,
}
_PACKED: PackedRecord[Any] = PackedRecord(make_dataclass("PromptRecord", _RECORD.items()))


def _delayed_tail(field: str, lists: list[list[int]], rows: NDArray[np.int32]) -> NDArray[np.int32]:
    width = rows.shape[1] - 1
    if any(len(row) != width for row in lists):
        raise InvalidRequest(
            f"{field}.delayed_tail", f"rows of {width} ids", f"rows of {sorted({len(row) for row in lists})} ids"
        )
    return np.array(lists, np.int32).reshape(-1, width)


def _parts(
    field: str, spans: tuple[AudioSpan, ...] | tuple[ImageSpan, ...], features: NDArray[np.float32] | None
) -> list[tuple[Any, NDArray[np.float32]]]:
    """Return each span with its part of the features."""
    num_frames = sum(span.num_frames for span in spans)
    there = 0 if features is None else len(features)
    if num_frames != there:
        raise InvalidRequest(field, f"spans of {there} frames in all, as in the features", f"{num_frames} frames")
    if features is None:
        return []
    ends = np.cumsum([span.num_frames for span in spans])
    return list(zip(spans, np.split(features, ends[:-1]), strict=True))


MAX_PART_CHARS = 4096
ID_BYTES = 16  # length of the secret session name in bytes


class SessionRecord(TypedDict):
    """JSON tensor `session` of a part: session name, part number (from 0), and a flag for the last part.

    With `resume`, no part is sent: the response contains the events of a live session after its first `resume` events.
    If `is_last` is true as well, the session ends instead.
    """

    id: Annotated[str, Field(min_length=1, max_length=64, description="the session id in the reply's first event")]
    part: Annotated[int, Field(ge=0, lt=1 << 31, description="an integer in [0, 2^31)")]
    is_last: Annotated[bool, Field(description="true or false")]
    resume: NotRequired[Annotated[int, Field(ge=0, lt=1 << 31, description="a number of events in [0, 2^31)")]]


@dataclass(frozen=True, slots=True)
class Resumption(Packed):
    """Request, on a new connection, for the events of a live session after the first `num_events`.

    If `ends` is True, the session ends instead.
    """

    session: str
    num_events: Annotated[int, Meta(ge=0)]
    ends: bool = False


@dataclass(frozen=True, slots=True)
class TextPart(Packed):
    """Part number `part` (from 0) of the streamed text of `session`; the text may be empty."""

    session: str
    part: int
    text: str
    is_last: bool


@dataclass(frozen=True, slots=True)
class AudioPart(Packed):
    """Part number `part` (from 0) of the live audio of `session`, encoded.

    Attributes:
        frames: Ids of the frames that the part completes, int32 [n, K], row by row. There may be none.
        is_last: True if the audio ends with this part.
        seconds: Duration of the audio so far.
        lost: Reason why the session ends with an error; empty if it does not.
    """

    session: str
    part: int
    frames: bytes
    is_last: bool
    seconds: Annotated[float, Meta(ge=0, le=MAX_AUDIO_S)] = 0.0
    lost: str = ""


SESSION: JsonRecord[SessionRecord] = JsonRecord(Annotated[SessionRecord, Field(description="a JSON object")])


def read_session(raw: Any, excluded: Sequence[str], can_resume: bool = False) -> SessionRecord:
    """Parse the input `session` of a part.

    Args:
        raw: Object with the request's inputs as attributes.
        excluded: Names of the inputs that only the first request of a session may have.
    """
    for name in excluded:
        if getattr(raw, name) is not None:
            raise InvalidRequest(name, "no value with session (only the first part can set it)", "a value")
    record = string("session", raw.session) or ""
    read_json("session", record)
    session = SESSION.read("session", record.encode(errors="surrogatepass"))
    if "resume" in session and not can_resume:
        raise InvalidRequest("session.resume", "no value (only live audio can be resumed)", session["resume"])
    return session
