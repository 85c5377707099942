"""Both ends of a delay pattern: ids before a stream's first frame, and after the audio has ended.

With delays (0, 1, 2) and frames A B C: `e` is end_of_audio, `E` end_of_reply, `.` the pad, and `~` a sampled id that
belongs to no frame of the reply.

               PADDED_WARM_UP    SAMPLED_WARM_UP
    stream 0   A B C …           A B C …
    stream 1   . A B …           ~ A B …
    stream 2   . . A …           ~ ~ A …

               FORCED_TAIL    SAMPLED_TAIL    PADDED_TAIL    NO_TAIL
    stream 0   C e E          C e ~ E         C e ~ E        C ~ ~ e
    stream 1   B C .          B C ~ ~         B C ~ .        B C ~ .
    stream 2   A B C          A B C ~         A B C ~        A B C .

If a limit, not the model, placed `e`, PADDED_TAIL skips its first row: `~` after `e` above is `.` then.

A staircase gives each stream a begin id `b` and an end id `d`, which replace pads and are sampled like codes. Once any
stream has sampled its end, one more stream per row is forced to its end, `f`, from the first stream on. The others
continue to be sampled. The row in which all streams carry their end is that of end_of_audio. The number of rows depends
on the draw:

               as trained       an end out of turn
    stream 0   A B C d f e      A B C f f e
    stream 1   b A B C d .      b A d ~ f .
    stream 2   b b A B C .      b b A ~ ~ .

`behind` counts rows from that of end_of_audio: 0 there, negative before. Arrays are numpy's or torch's.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

Array = Any


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Rows before a delayed stream's first frame: pads or, with `is_sampled`, sampled ids."""

    is_sampled: bool

    def carries_drawn(self, frame: Array) -> Array:
        """Return True where a stream at `frame` (negative before its first) carries the sampled id."""
        return (frame >= 0) | self.is_sampled


class Tail(ABC):
    """Rows after end_of_audio, until the delayed streams have completed the last frame.

    Attributes:
        num_skipped_by_cut: Added to `behind` of these rows if a limit, not the model, placed end_of_audio.
    """

    num_skipped_by_cut: ClassVar[int] = 0

    @abstractmethod
    def num_rows(self, max_delay: int) -> int:
        """Return the number of rows from end_of_audio to end_of_reply if a frame must be completed.

        0 if both coincide.
        """

    def num_closing_rows(self, max_delay: int) -> int:
        """Return the number of rows before end_of_audio that begin no frame of the reply."""
        return 0

    @abstractmethod
    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return stream 0 in rows after end_of_audio, given the `drawn` ids [B]."""

    @abstractmethod
    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True where a stream delayed by `delays` carries the sampled id in a row `behind`; a pad otherwise."""


@dataclass(frozen=True)
class ForcedTail(Tail):
    """Tail with the remaining codes, then pads."""

    def num_rows(self, max_delay: int) -> int:
        """Return the largest delay: the last frame is completed in the row of end_of_reply."""
        return max(1, max_delay - 1)

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return pads."""
        return pad_id

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True while the stream has frames left."""
        return behind < delays


@dataclass(frozen=True)
class SampledTail(Tail):
    """Tail in which all streams are sampled for as many rows as the largest delay."""

    def num_rows(self, max_delay: int) -> int:
        """Return one row more than the last frame needs."""
        return max(1, max_delay)

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return the sampled ids."""
        return drawn

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True."""
        return (delays >= 0) | (behind < 0)


@dataclass(frozen=True)
class PaddedTail(SampledTail):
    """Tail as long as SampledTail with only its first row sampled on all streams; then streams end one by one."""

    num_skipped_by_cut = 1

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return the sampled id in the first row, then pads."""
        return pad_id + (drawn - pad_id) * (behind <= 1)

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True in the first row and until one row after the stream's last frame."""
        return (behind <= 1) | (behind <= delays)


@dataclass(frozen=True)
class NoTail(Tail):
    """No tail: the reply ends with end_of_audio, and the model samples the completing rows before it."""

    def num_rows(self, max_delay: int) -> int:
        """Return 0."""
        return 0

    def num_closing_rows(self, max_delay: int) -> int:
        """Return the number of rows that complete frames and begin none."""
        return max_delay

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return the sampled ids; no such row exists."""
        return pad_id

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True in all rows except that of end_of_audio."""
        return (behind < 0) & (delays >= 0)


@dataclass(frozen=True, slots=True)
class Staircase:
    """Begin and end ids of each output stream, which replace pads."""

    begin: tuple[int, ...]
    end: tuple[int, ...]


PADDED_WARM_UP, SAMPLED_WARM_UP = WarmUp(is_sampled=False), WarmUp(is_sampled=True)
FORCED_TAIL, SAMPLED_TAIL, PADDED_TAIL, NO_TAIL = ForcedTail(), SampledTail(), PaddedTail(), NoTail()
