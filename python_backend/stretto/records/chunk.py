"""Messages that carry chunks of codes from the language model to the decoder, and events for the client.

An event is the JSON tensor `event` of a response.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Annotated, Any, NotRequired

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from typing_extensions import TypedDict

from stretto.errors import InvalidRequest
from stretto.records.flow_address import FlowAddress
from stretto.records.json_record import JsonRecord, Packed
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment
from stretto_contract.finish_reasons import FinishReason
from stretto_contract.transcripts import Passage


@dataclass(frozen=True, slots=True)
class WordMark:
    """Frame at which a word begins; `word` is None if the aligned text unit is not a word.

    Attributes:
        end: Frame at which the word ends; None if unknown.
        place: Index of the word's first character in the request's text, and of the character after the word; None if
            unknown.
    """

    word: str | None
    frame: int
    end: int | None = None
    place: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class GuidanceChange:
    """Frame at which guidance of stream 0 is switched on (`is_guided`) or off; a guided reply starts with guidance.

    A change after the last frame applies to the rows that complete delayed codebooks. Frame numbers in the report count
    omitted frames (without codes) and silent frames that are not sent; those in chunks count neither.
    """

    frame: int
    is_guided: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    """Beginning of a transcript that a request for a longer recording can continue.

    Attributes:
        beginning: Value of the option `beginning` in that request.
        num_chars: Number of characters of the transcript that will not change.
    """

    beginning: str
    num_chars: int


@dataclass(frozen=True, slots=True)
class Report:
    """Summary of the whole utterance, sent with its last chunk.

    Attributes:
        guided_frames: Number of frames sampled with guidance; `num_frames` under policy `always`.
        guidance_changes: All guidance changes, for policies other than `always`. Frames are numbered over the whole
            utterance.
        queue_s: Time before the request was first scheduled.
        first_frame_s: Time to the first frame; None if no frame was generated.
        total_s: Time to the last row.
        held_s: Time spent waiting for streamed text or live audio.
        input_audio_s: Duration of all recordings in the request.
        num_pieces: Number of pieces of the text, of which the reply speaks one (the option `piece`).
        untimed_words: Words of the text without a time, in order. If the model itself reports word times, it may have
            skipped these words.
        language: English name of the recording's language in lower case, if the model names it; otherwise empty.
        continuation: Beginning for a further request, if the request had the option `beginning`; otherwise None.
    """

    finish_reason: FinishReason
    num_prompt_rows: int
    num_text_tokens: int
    num_frames: int
    guided_frames: int
    guidance_scale: float
    seed: int
    queue_s: float
    first_frame_s: float | None
    total_s: float
    guidance_policy: str = "always"
    guidance_changes: tuple[GuidanceChange, ...] = ()
    held_s: float = 0.0
    input_audio_s: float = 0.0
    num_pieces: int = 1
    untimed_words: tuple[str, ...] = ()
    language: Annotated[str, Meta(max_length=64)] = ""
    continuation: Continuation | None = None


MAX_ALIGNED_CHARS = 1 << 20
MAX_ALIGNED_S = 60
ALIGNED_RATE = 16_000


@dataclass(frozen=True, slots=True)
class Alignment:
    """Request for word times from the decoder's aligner.

    Attributes:
        text: Text to be spoken; empty if the model generates it.
        recording: Recording to align, int16 samples at ALIGNED_RATE; empty to align the generated speech.
        is_piece: True if `text` is a part of the request's text, whose words have other positions in the whole text.
    """

    text: Annotated[str, Meta(max_length=MAX_ALIGNED_CHARS)] = ""
    recording: Annotated[bytes, Meta(max_length=2 * MAX_ALIGNED_S * ALIGNED_RATE)] = b""
    is_piece: bool = False


MAX_SOUND_TOKENS = 1024
MAX_SOUND_BYTES = 1 << 20
MAX_MELS = 512
MAX_X_VECTOR = 1024


@dataclass(frozen=True, slots=True)
class Sound:
    """Voice recording, encoded for a decoder that supports recorded voices. The language model does not use it.

    It is personal data, so its `repr`, which may be logged, omits the arrays.

    Attributes:
        tokens: Codes of the recording, int32 [n].
        mel: Mel spectrogram, float32 [F, num_mels].
        x_vector: x-vector of the speaker, float32 [E].
        text: Ids of the text, int32 [T], for a decoder that reads the prompt; empty for others.
        rows: Rows of the voice in the prompt, float32 [N · H], for such a decoder.
    """

    tokens: Annotated[bytes, Meta(min_length=4, max_length=4 * MAX_SOUND_TOKENS)] = field(repr=False)
    mel: Annotated[bytes, Meta(max_length=MAX_SOUND_BYTES)] = field(repr=False)
    num_mels: Annotated[int, Meta(ge=1, le=MAX_MELS)]
    x_vector: Annotated[bytes, Meta(max_length=4 * MAX_X_VECTOR)] = field(repr=False)
    text: Annotated[bytes, Meta(max_length=4 * MAX_SOUND_TOKENS)] = field(default=b"", repr=False)
    rows: Annotated[bytes, Meta(max_length=MAX_SOUND_BYTES)] = field(default=b"", repr=False)

    @classmethod
    def from_arrays(cls, tokens: NDArray[Any], mel: NDArray[Any], x_vector: NDArray[Any]) -> "Sound":
        """Create the record from tokens [n], mel frames [F, M] and an x-vector [E]."""
        parts = tokens.astype("<i4").tobytes(), mel.astype("<f4").tobytes(), x_vector.astype("<f4").tobytes()
        return cls(parts[0], parts[1], mel.shape[1], parts[2])

    def with_prompt(self, text: Sequence[int], rows: NDArray[np.float32]) -> "Sound":
        """Return a copy with the ids of a text, and the rows of the voice in its prompt, float32 [N, H]."""
        return replace(self, text=np.array(text, "<i4").tobytes(), rows=rows.astype("<f4").tobytes())

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """Return tokens [n], mel frames [F, num_mels] and x-vector [E]; raise InvalidRequest if one is incomplete."""
        for name, data, size in (
            ("tokens", self.tokens, 4),
            ("mel", self.mel, 4 * self.num_mels),
            ("x_vector", self.x_vector, 4),
            ("text", self.text, 4),
            ("rows", self.rows, 4),
        ):
            if len(data) % size:
                raise InvalidRequest(f"chunk.sound.{name}", f"a multiple of {size} bytes", f"{len(data)} bytes")
        mel = np.frombuffer(self.mel, "<f4").reshape(-1, self.num_mels)
        return np.frombuffer(self.tokens, "<i4"), mel, np.frombuffer(self.x_vector, "<f4")

    @property
    def prompt(self) -> tuple[NDArray[Any], ...]:
        """Ids of the text [T] and rows of the voice [N · H], for a decoder that reads the prompt; empty for others."""
        return (np.frombuffer(self.text, "<i4"), np.frombuffer(self.rows, "<f4")) if self.text else ()

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self._parts))

    @property
    def digest(self) -> bytes:
        """Hash of all fields, by which decoders identify a recording."""
        sizes = f"{[*map(len, self._parts)]} {self.num_mels} ".encode()
        return blake2b(sizes + b"".join(self._parts)).digest()

    @property
    def _parts(self) -> tuple[bytes, ...]:
        return self.tokens, self.mel, self.x_vector, self.text, self.rows


MAX_EARLY_BYTES = 1 << 18  # samples of a few frames
CUT_S = 0.3  # duration of the audio before a limit in which the decoder looks for a pause
MAX_KEPT_BYTES = 1 << 21  # per session: of events in the language model, and of answers in the decoder


@dataclass(frozen=True, slots=True)
class Kept:
    """Identity of a session that can be resumed, for which the decoder keeps its state and its last answers.

    Attributes:
        utterance: Id of the reply, the same in all connections.
        slot: Slot that the session holds while it can be resumed.
        number: Number of the chunk in the reply, the same in all connections. The first chunk of a connection only
            names the session. Its `number` is that of the chunk after it, or None in the first connection.
    """

    utterance: Annotated[str, Meta(min_length=1, max_length=64)]
    slot: FlowAddress
    number: Annotated[int, Meta(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Next part of an utterance, without its codes, which are sent as a tensor `codes [K, T] int32`.

    Attributes:
        marks: Words that begin in the chunk's frames.
        guidance_changes: Guidance changes in the chunk's frames.
        output_codes: Codes of all output streams, [S][T], if the client requested them.
        num_reference_frames: In the first chunk with frames, number of leading frames that only give the decoder left
            context, such as those of a reference recording. They are not played.
        num_silent_frames: In the first chunk with frames of the reply, number of silent frames at its start, whose
            samples are not sent. Frame numbers in chunks do not count them.
        samples: In the first chunk with frames, their samples, float32 [n], if the engine has decoded them.
        voice: Index in the codec's voices.
        sound: In the first chunk, the voice recording, if one is used instead of `voice`.
        alignment: In the first chunk, the request for word times; None if they were not requested.
        ends_audio: True if no frames follow, although this chunk is not final. The final chunk then has no samples.
        num_cut_frames: If a limit ended the audio, number of the chunk's last frames in which the decoder may end it.
        written: In the last chunk, the whole streamed text, if word times were requested.
        session: In the first chunk of a reply to streamed text or live audio, the name that the client needs to send
            more.
        pauses: For each frame since the last chunk, the probability of each pause in `Family.pauses_s`, if requested.
        begun: If progress was requested, words completed since the last chunk; `marks` contains them once they end.
        num_transcribed: If progress was requested, number of frames of the recording whose text is complete.
        passages: Passages of a transcript that are complete since the last chunk, in families that report them.
        kept: Identity of the session, if it generates speech and can be resumed; otherwise None.
    """

    index: Annotated[int, Meta(ge=0)]
    segment: Segment
    text: str = ""
    marks: tuple[WordMark, ...] = ()
    is_final: bool = False
    report: Report | None = None
    guidance_changes: tuple[GuidanceChange, ...] = ()
    output_codes: tuple[tuple[int, ...], ...] = ()
    num_reference_frames: Annotated[int, Meta(ge=0)] = 0
    num_silent_frames: Annotated[int, Meta(ge=0)] = 0
    samples: Annotated[bytes, Meta(max_length=MAX_EARLY_BYTES)] = field(default=b"", repr=False)
    session: str = ""
    voice: Annotated[int, Meta(ge=0)] = 0
    sound: Sound | None = None
    alignment: Alignment | None = None
    ends_audio: bool = False
    num_cut_frames: Annotated[int, Meta(ge=0)] = 0
    written: Annotated[str, Meta(max_length=MAX_ALIGNED_CHARS)] = ""
    pauses: tuple[tuple[float, ...], ...] = ()
    begun: tuple[WordMark, ...] = ()
    num_transcribed: int | None = None
    passages: tuple[Passage, ...] = ()
    kept: Kept | None = None

    @property
    def flushes(self) -> bool:
        """True if the decoder must decode all remaining frames."""
        return self.is_final or self.ends_audio

    def num_audible(self, length: int) -> int:
        """Return how many of `length` columns of codes are audible frames."""
        return max(0, length - self.num_reference_frames - self.num_silent_frames)


@dataclass(frozen=True, slots=True)
class LMChunk:
    """Chunk with its codes: int32 [K, T] in [0, codebook_size), without delays, or None if there is no audio."""

    chunk: Chunk
    codes: NDArray[np.int32] | None


@dataclass(frozen=True, slots=True)
class Envelope(Packed):
    """Message from the language model to the decoder: a chunk of `utterance`, or a probe if `chunk` is None.

    The decoder acknowledges a probe without a response to the client.

    Attributes:
        form: Output format of the whole utterance; only present with its first chunk.
        receipt: Number of an accepted part of streamed text or live audio. A receipt is a separate message, which the
            decoder forwards to the part's sender.
        frames: In a receipt for live audio, number of frames in the session; None for text.
        lag_frames: In a receipt for live audio, number of frames that the reply has not read yet.
    """

    utterance: Annotated[str, Meta(min_length=1, max_length=64)]
    flow: FlowAddress
    chunk: Chunk | None
    form: OutputForm | None = None
    receipt: int | None = None
    frames: int | None = None
    lag_frames: int = 0


class WordTime(TypedDict):
    """Word and its times in the utterance, or in a transcribed recording.

    Attributes:
        start_s: Start in seconds.
        end_s: End in seconds; present if the word was aligned or if the model itself reports times.
        score: Mean probability of the word's letters in the audio; present if the word was aligned.
        text_start: Index of the word's first character in the request's text; present if known.
        text_end: Index of the character after the word; present if known.
    """

    word: str
    start_s: float
    end_s: NotRequired[float]
    score: NotRequired[float]
    text_start: NotRequired[int]
    text_end: NotRequired[int]


class GuidanceTime(TypedDict):
    """Time at which guidance is switched on or off, in seconds from the utterance's start."""

    start_s: float
    is_guided: bool


class RingSlots(TypedDict):
    """Slots of the client's ring that contain the samples of a response.

    Attributes:
        slot: Number of the first slot.
    """

    slot: int
    slots: int
    samples: int
    dtype: str


class ReportEvent(TypedDict):
    """Summary of the whole utterance: fields from the decoder and from the language model's `Report`, if it sent one.

    Attributes:
        guidance_changes: (frame, is_guided) pairs.
        continuation: `beginning` and `num_chars` for a further request; None without the option `beginning`.
        audio_s: Duration of all samples, in seconds.
        decode_s: Processing time of the decoder, in seconds.
        first_sound_s: Time of the utterance's first sample that is not silent, in seconds; None if all are silent.
        aligned: Present if word times were requested from the aligner; True if this event contains them.
        marker: Name of the marker of the samples; absent if they are not marked.
    """

    finish_reason: NotRequired[str]
    num_prompt_rows: NotRequired[int]
    num_text_tokens: NotRequired[int]
    num_frames: NotRequired[int]
    guided_frames: NotRequired[int]
    guidance_scale: NotRequired[float]
    seed: NotRequired[int]
    queue_s: NotRequired[float]
    first_frame_s: NotRequired[float | None]
    total_s: NotRequired[float]
    guidance_policy: NotRequired[str]
    guidance_changes: NotRequired[list[tuple[int, bool]]]
    held_s: NotRequired[float]
    input_audio_s: NotRequired[float]
    num_pieces: NotRequired[int]
    language: NotRequired[str]
    continuation: NotRequired[dict[str, Any] | None]
    audio_s: float
    decode_s: float
    first_sound_s: float | None
    aligned: NotRequired[bool]
    untimed_words: NotRequired[list[str]]
    marker: NotRequired[str]


class Event(TypedDict):
    """Metadata of a response.

    Attributes:
        start_s: Time of the first sample, in seconds from the start of the utterance.
        codes: Codes of all output streams, [S][T], if requested.
        report: Summary, in the last event.
        ring: Slots of the client's ring that contain the samples, if the client has a ring.
        session: In the first event of a reply to streamed text or live audio, the session name that the client needs to
            send more.
        pauses: For each frame since the last event, the probability of each pause, if requested.
        begun: If progress was requested, words completed since the last event, without end times.
        transcribed_s: If progress was requested, time in the recording up to which the transcript is complete, in
            seconds.
        passages: Passages of a transcript that are complete since the last event, in families that report them.
        marker: Name of the marker of these samples; absent if they are not marked.
    """

    utterance: str
    index: int
    segment: str
    text: str
    words: list[WordTime]
    guidance_changes: list[GuidanceTime]
    start_s: float
    duration_s: float
    sample_rate: int
    is_final: bool
    codes: NotRequired[tuple[tuple[int, ...], ...]]
    report: NotRequired[ReportEvent]
    ring: NotRequired[RingSlots]
    session: NotRequired[str]
    pauses: NotRequired[tuple[tuple[float, ...], ...]]
    begun: NotRequired[list[WordTime]]
    transcribed_s: NotRequired[float]
    passages: NotRequired[tuple[Passage, ...]]
    marker: NotRequired[str]


class PartEvent(TypedDict):
    """Acknowledgement of one part of streamed text or live audio.

    Attributes:
        frames: Number of frames of live audio received so far.
        lag_frames: Number of these frames that the reply has not read yet.
    """

    utterance: str
    part: int
    frames: NotRequired[int]
    lag_frames: NotRequired[int]


EVENT: JsonRecord[Event] = JsonRecord(Event)
PART_EVENT: JsonRecord[PartEvent] = JsonRecord(PartEvent)


def last_chunks(last: LMChunk) -> list[LMChunk]:
    """Split a reply's last chunk into one with its frames and a final one without frames.

    The decoder can then send the samples immediately, and the final event once the word times are known.
    """
    chunk = last.chunk
    ending = Chunk(chunk.index + 1, chunk.segment, is_final=True, report=chunk.report, voice=chunk.voice)
    return [LMChunk(replace(chunk, is_final=False, report=None, ends_audio=True), last.codes), LMChunk(ending, None)]
