"""What one utterance has gained since its last chunk: the record that goes from the language model to the decoder."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stretto.streams.segment import Segment


@dataclass(frozen=True, slots=True)
class WordMark:
    """The frame at which a word (or, with `word` None, a script entry that is no word) starts being spoken."""

    word: str | None
    frame: int


@dataclass(frozen=True, slots=True)
class GuidanceChange:
    """The frame, counted from the first, from which on stream 0 is drawn with (`is_guided`) or without guidance.

    A reply begins guided if it asked for guidance. A change behind the last frame is of the rows that drain the delayed
    streams.
    """

    frame: int
    is_guided: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What the whole utterance came to; sent with its last chunk.

    finish_reason: `stop` (ended by itself), `length` (max_rows or the model length ended it).
    guided_frames: frames sampled with both halves of the guidance pair; equals num_frames when guidance was asked for
    under the policy `always`. guidance_changes: every change that another policy made.
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

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Report":
        """The inverse of `asdict`."""
        changes = tuple(GuidanceChange(**change) for change in record["guidance_changes"])
        return cls(**record | {"guidance_changes": changes})


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of an utterance, without its codes: they travel beside it as `codes [K, T] int32`.

    marks, guidance_changes: those of its frames. output_codes: [S][T], of all output streams, where a client asked for
    them: as a request takes audio in codes.
    """

    index: int
    segment: Segment
    text: str = ""
    marks: tuple[WordMark, ...] = ()
    is_final: bool = False
    report: Report | None = None
    guidance_changes: tuple[GuidanceChange, ...] = ()
    output_codes: tuple[tuple[int, ...], ...] = ()

    def to_record(self) -> dict[str, Any]:
        """This chunk as plain data, ready for JSON."""
        return asdict(self) | {"segment": self.segment.name.lower()}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Chunk":
        """The inverse of `to_record`."""
        return cls(
            index=record["index"],
            segment=Segment[record["segment"].upper()],
            text=record["text"],
            marks=tuple(WordMark(**mark) for mark in record["marks"]),
            is_final=record["is_final"],
            report=None if record["report"] is None else Report.from_record(record["report"]),
            guidance_changes=tuple(GuidanceChange(**change) for change in record["guidance_changes"]),
            output_codes=tuple(map(tuple, record["output_codes"])),
        )


@dataclass(frozen=True, slots=True)
class LMChunk:
    """A chunk and its codes [K, T] int32 (delay undone, 0 … codebook_size - 1), or None without audio."""

    chunk: Chunk
    codes: np.ndarray | None
