"""What one utterance has gained since its last chunk: the record that goes from the language model to the decoder."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

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
    streams. Where frames that are no codes are left out, a chunk counts without them, as is heard, and a report with
    them, as was drawn.
    """

    frame: int
    is_guided: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What the whole utterance came to; sent with its last chunk.

    finish_reason: `stop` (ended by itself), `length` (max_rows or the model length, not the model, ended a segment).
    guided_frames: frames sampled with both halves of the guidance pair; equals num_frames when guidance was asked for
    under the policy `always`. guidance_changes: every change that another policy made, among as many frames as
    num_frames. held_s: how long the reply stood still for words that had not come.
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


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of an utterance, without its codes: they travel beside it as `codes [K, T] int32`.

    marks, guidance_changes: those of its frames. output_codes: [S][T], of all output streams, where a client asked for
    them: as a request takes audio in codes. num_reference_frames: of the first chunk, how many of the first frames of
    its codes are of a reference: the utterance goes on from them, and nothing of them is heard. is_prompt: whether its
    codes are none, but the rows of the prompt, [S, P] ids, which what fills other codebooks looks at; of the first
    chunk. voice: which of the codec's voices speaks. session: of the first chunk of a text that is being written, by
    which name it goes on.
    """

    index: Annotated[int, Field(ge=0)]
    segment: Segment
    text: str = ""
    marks: tuple[WordMark, ...] = ()
    is_final: bool = False
    report: Report | None = None
    guidance_changes: tuple[GuidanceChange, ...] = ()
    output_codes: tuple[tuple[int, ...], ...] = ()
    num_reference_frames: Annotated[int, Field(ge=0)] = 0
    is_prompt: bool = False
    session: str = ""
    voice: Annotated[int, Field(ge=0)] = 0

    def num_heard(self, length: int) -> int:
        """How many frames of its codes, so many columns, are heard."""
        return 0 if self.is_prompt else length - self.num_reference_frames


@dataclass(frozen=True, slots=True)
class LMChunk:
    """A chunk and its codes [K, T] int32 (delay undone, 0 … codebook_size - 1), or None without audio."""

    chunk: Chunk
    codes: np.ndarray | None
