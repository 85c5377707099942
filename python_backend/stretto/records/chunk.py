"""Chunks of codes from the language model to the decoder, with their envelope."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from stretto.records.packed_record import PackedRecord
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment


@dataclass(frozen=True, slots=True)
class WordMark:
    """Frame at which a word begins; `word` is None for a pointer entry that is no word."""

    word: str | None
    frame: int


@dataclass(frozen=True, slots=True)
class GuidanceChange:
    """Frame from which on stream 0 is sampled with (`is_guided`) or without guidance.

    A reply that requested guidance begins guided. A change after the last frame concerns the rows that complete delayed
    streams. If frames without codes are left out, a chunk counts kept frames and a report counts all frames.
    """

    frame: int
    is_guided: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Summary of the whole utterance, sent with its last chunk.

    Attributes:
        finish_reason: `stop` if the model ended it, `length` if max_rows or the model length ended a segment.
        guided_frames: Frames sampled with both requests of the CFG pair; num_frames for guidance with policy `always`.
        guidance_changes: All changes made by another policy, counted in all frames.
        held_s: Time blocked on streamed text, in seconds.
        input_audio_s: Duration of all recordings of the request, in seconds.
    """

    finish_reason: str
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


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of an utterance without its codes, which travel as a tensor `codes [K, T] int32`.

    Attributes:
        marks: Words that begin in its frames.
        guidance_changes: Guidance changes in its frames.
        output_codes: Codes of all output streams, [S][T], if the client requested them.
        num_reference_frames: In the first chunk, number of leading reference frames, which precede the audible ones.
        is_prompt: True if the tensor holds the prompt's rows [S, P] for a model that fills in codebooks; first chunk
            only.
        voice: Index of the codec's voice.
        session: In the first chunk of a streamed text, the name under which the text continues.
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
    is_prompt: bool = False
    session: str = ""
    voice: Annotated[int, Meta(ge=0)] = 0

    def num_heard(self, length: int) -> int:
        """Return the number of audible frames among `length` columns of codes."""
        return 0 if self.is_prompt else length - self.num_reference_frames


@dataclass(frozen=True, slots=True)
class LMChunk:
    """Chunk with its codes, int32 [K, T] (undelayed, 0 … codebook_size - 1), or None without audio."""

    chunk: Chunk
    codes: NDArray[np.int32] | None


TABLE = r"stretto_flow_[0-9]{1,10}_[0-9a-f]{32}"
MAX_GENERATION = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class FlowAddress:
    """Address of an utterance's flow slot; `generation` distinguishes successive users of the slot."""

    table: Annotated[str, Meta(pattern=rf"^{TABLE}\Z")]
    slot: Annotated[int, Meta(ge=1, lt=1 << 31)]
    generation: Annotated[int, Meta(ge=1, le=MAX_GENERATION)]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A chunk of `utterance`, or, without one, a probe, which the decoder answers without a response to the client.

    Attributes:
        form: Output format of the whole utterance, in its first chunk.
        receipt: Number of an accepted part of streamed text; it travels alone, to the sender of the part.
    """

    utterance: Annotated[str, Meta(min_length=1, max_length=64)]
    flow: FlowAddress
    chunk: Chunk | None
    form: OutputForm | None = None
    receipt: int | None = None

    def to_bytes(self) -> bytes:
        """Return this envelope as MessagePack."""
        return _PACKED.write(self)

    @classmethod
    def from_bytes(cls, field: str, data: bytes) -> "Envelope":
        """Return the envelope in `data`; raise InvalidRequest naming `field` if it is invalid."""
        return _PACKED.read(field, data)


_PACKED: PackedRecord[Envelope] = PackedRecord(Envelope)
