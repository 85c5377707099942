"""The two ends of a delay pattern: what streams carry before their first frame, and once the audio has ended.

With delays (0, 1, 2) and frames A B C: `e` is end_of_audio, `E` end_of_reply, `.` the pad, and `~` what the model
samples there, though it belongs to no frame that counts.

               PADDED_WARM_UP    SAMPLED_WARM_UP
    stream 0   A B C …           A B C …
    stream 1   . A B …           ~ A B …
    stream 2   . . A …           ~ ~ A …

               FORCED_TAIL    SAMPLED_TAIL    PADDED_TAIL    NO_TAIL
    stream 0   C e E          C e ~ E         C e ~ E        C ~ ~ e
    stream 1   B C .          B C ~ ~         B C ~ .        B C ~ .
    stream 2   A B C          A B C ~         A B C ~        A B C .

Where a limit, not the model, put `e` there, PADDED_TAIL skips its first row: what is `~` behind `e` above is `.` then.

A staircase gives each stream a begin `b` and an end `d` of its own, which take the place of pads and are drawn on a
par with codes. Once any stream has drawn its end, one more stream a row is made to carry its own, `f`, from the first
on; the others go on drawing, and the row in which all carry theirs is that of end_of_audio. How many rows that takes is
a matter of what is drawn:

               as trained       an end out of turn
    stream 0   A B C d f e      A B C f f e
    stream 1   b A B C d .      b A d ~ f .
    stream 2   b b A B C .      b b A ~ ~ .

`behind` counts rows from that of end_of_audio: 0 there, negative before. Arrays are numpy's or torch's: the methods
only compare and combine.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

Array = Any


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The rows in which a stream that trails has no frame yet: pads, or with `is_sampled` what the model draws."""

    is_sampled: bool

    def carries_drawn(self, frame: Array) -> Array:
        """Whether a stream that stands at `frame`, negative before its first, carries what was drawn."""
        return (frame >= 0) | self.is_sampled


class Tail(ABC):
    """The rows that follow end_of_audio, until the streams that trail have said the last frame.

    num_skipped_by_cut: how much further `behind` its rows stand where a limit put end_of_audio there.
    """

    num_skipped_by_cut: ClassVar[int] = 0

    @abstractmethod
    def num_rows(self, max_delay: int) -> int:
        """Rows from end_of_audio to end_of_reply where there is a frame to complete; 0 where the two are one."""

    def num_closing_rows(self, max_delay: int) -> int:
        """The last rows before end_of_audio that begin no frame of the reply."""
        return 0

    @abstractmethod
    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """What stream 0 carries in rows behind end_of_audio, for which the model has `drawn` [B] ids."""

    @abstractmethod
    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Whether a stream that trails by one of `delays` carries what was drawn in a row `behind`, a pad otherwise."""


@dataclass(frozen=True)
class ForcedTail(Tail):
    """What is left of the frames, and pads."""

    def num_rows(self, max_delay: int) -> int:
        """The slowest stream's last frame stands in the row of end_of_reply."""
        return max(1, max_delay - 1)

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """Pads."""
        return pad_id

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """While it has frames left."""
        return behind < delays


@dataclass(frozen=True)
class SampledTail(Tail):
    """All streams are sampled on, for as many rows as the slowest stream trails."""

    def num_rows(self, max_delay: int) -> int:
        """One more than the slowest stream's last frame needs."""
        return max(1, max_delay)

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """What is drawn."""
        return drawn

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """Always."""
        return (delays >= 0) | (behind < 0)


@dataclass(frozen=True)
class PaddedTail(SampledTail):
    """As many rows as of SampledTail, of which only the first is sampled on all streams; then each ends in turn."""

    num_skipped_by_cut = 1

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """What is drawn in the first row, then pads."""
        return pad_id + (drawn - pad_id) * (behind <= 1)

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """In the first row, and until one row after its last frame."""
        return (behind <= 1) | (behind <= delays)


@dataclass(frozen=True)
class NoTail(Tail):
    """The reply ends with end_of_audio: the model itself samples the rows that complete the last frames before it."""

    def num_rows(self, max_delay: int) -> int:
        """None."""
        return 0

    def num_closing_rows(self, max_delay: int) -> int:
        """Those that complete frames and begin none."""
        return max_delay

    def first_stream(self, drawn: Array, pad_id: int, behind: Array) -> Array:
        """There is no such row."""
        return pad_id

    def carries_drawn(self, behind: Array, delays: Array) -> Array:
        """In all rows but that of end_of_audio."""
        return (behind < 0) & (delays >= 0)


@dataclass(frozen=True, slots=True)
class Staircase:
    """Ids with which each output stream begins and ends by itself, in the place of pads."""

    begin: tuple[int, ...]
    end: tuple[int, ...]


PADDED_WARM_UP, SAMPLED_WARM_UP = WarmUp(is_sampled=False), WarmUp(is_sampled=True)
FORCED_TAIL, SAMPLED_TAIL, PADDED_TAIL, NO_TAIL = ForcedTail(), SampledTail(), PaddedTail(), NoTail()
