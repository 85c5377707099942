"""Both ends of a delay pattern: ids before a stream's first frame, and ids after the audio has ended.

Example with delays (0, 1, 2) and frames A B C: `e` is end_of_audio, `E` end_of_reply, `.` the pad, and `~` a sampled id
that belongs to no frame of the reply.

               PADDED_WARM_UP    SAMPLED_WARM_UP
    stream 0   A B C …           A B C …
    stream 1   . A B …           ~ A B …
    stream 2   . . A …           ~ ~ A …

               FORCED_TAIL    SAMPLED_TAIL    PADDED_TAIL    NO_TAIL
    stream 0   C e E          C e ~ E         C e ~ E        C ~ ~ e
    stream 1   B C .          B C ~ ~         B C ~ .        B C ~ .
    stream 2   A B C          A B C ~         A B C ~        A B C .

If a length limit forces `e`, PADDED_TAIL skips its first row after it, so the `~` of that row becomes `.`.

A staircase gives each stream a begin id `b` and an end id `d`, which replace pads and are sampled like codes. Once any
stream has sampled its end id, one more stream per row is forced to its end id (`f`), in the order of the streams. The
other streams continue to be sampled. The row in which all streams have their end id is that of end_of_audio. The number
of rows depends on the sampled ids:

               as trained       one stream ends early
    stream 0   A B C d f e      A B C f f e
    stream 1   b A B C d .      b A d ~ f .
    stream 2   b b A B C .      b b A ~ ~ .

`behind` is a row's position relative to that of end_of_audio: 0 there, negative before, positive after. Arrays are
numpy or torch arrays.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

Array = Any


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Ids of a delayed stream before its first frame: sampled ids if `is_sampled`, otherwise pads."""

    is_sampled: bool

    def carries_drawn(self, frame: Array) -> Array:
        """Return True where a stream keeps the sampled id at frame index `frame` (negative before its first frame)."""
        return (frame >= 0) | self.is_sampled


class Tail(ABC):
    """Rows after end_of_audio, in which the delayed streams complete the last frame.

    Attributes:
        num_skipped_by_cut: Number of these rows to skip, by adding it to `behind`, if a length limit forced
            end_of_audio.
    """

    num_skipped_by_cut: ClassVar[int] = 0

    @abstractmethod
    def num_rows(self, max_delay: int) -> int:
        """Return the number of rows from end_of_audio to end_of_reply, for a reply with at least one frame.

        0 if both are the same row.
        """

    def num_closing_rows(self, max_delay: int) -> int:
        """Return the number of rows directly before end_of_audio in which no frame begins."""
        return 0

    @abstractmethod
    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return the ids of stream 0 in rows after end_of_audio, [B].

        Args:
            drawn: Sampled ids, [B].
            pad_id: Id of an empty stream.
            behind: Positions relative to end_of_audio, [B].
        """

    @abstractmethod
    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True where a delayed stream keeps the sampled id, False where it gets a pad.

        Args:
            behind: Positions relative to end_of_audio, broadcast against `delays`.
            delays: Delays of the streams in rows.
        """


@dataclass(frozen=True)
class ForcedTail(Tail):
    """Tail in which delayed streams complete the last frame and then have pads; stream 0 has pads."""

    def num_rows(self, max_delay: int) -> int:
        """Return the largest delay minus 1, at least 1: the last frame is completed in the row of end_of_reply."""
        return max(1, max_delay - 1)

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return the pad."""
        return pad_id

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True until the stream has completed the last frame."""
        return behind < delays


@dataclass(frozen=True)
class SampledTail(Tail):
    """Tail of as many rows as the largest delay, in which all streams are sampled."""

    def num_rows(self, max_delay: int) -> int:
        """Return the largest delay, at least 1: one row more than the last frame needs."""
        return max(1, max_delay)

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return the sampled ids."""
        return drawn

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True for every stream and row."""
        return (delays >= 0) | (behind < 0)


@dataclass(frozen=True)
class PaddedTail(SampledTail):
    """Tail as long as SampledTail, in which the pads of each stream begin with the second row after its last frame."""

    num_skipped_by_cut = 1

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return the sampled id in the first row after end_of_audio, then pads."""
        return pad_id + (drawn - pad_id) * (behind <= 1)

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True in rows in which a stream keeps its sampled id.

        The last one is the first row after end_of_audio or the row after the stream's last frame, whichever is later.
        """
        return (behind <= 1) | (behind <= delays)


@dataclass(frozen=True)
class NoTail(Tail):
    """No tail: the reply ends with end_of_audio, because the model completes the last frame in the rows before it."""

    def num_rows(self, max_delay: int) -> int:
        """Return 0, because end_of_audio and end_of_reply are the same row."""
        return 0

    def num_closing_rows(self, max_delay: int) -> int:
        """Return the largest delay: the rows that complete the last frame."""
        return max_delay

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Return the pad; there are no rows after end_of_audio."""
        return pad_id

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Return True in every row before that of end_of_audio."""
        return (behind < 0) & (delays >= 0)


@dataclass(frozen=True, slots=True)
class Staircase:
    """Begin id and end id of each output stream, which replace pads."""

    begin: tuple[int, ...]
    end: tuple[int, ...]


PADDED_WARM_UP, SAMPLED_WARM_UP = WarmUp(is_sampled=False), WarmUp(is_sampled=True)
FORCED_TAIL, SAMPLED_TAIL, PADDED_TAIL, NO_TAIL = ForcedTail(), SampledTail(), PaddedTail(), NoTail()
