"""Layout of a row: token ids per stream, reply segments, and the delay pattern.

A delay pattern has two ends: the ids before a stream's first frame, and the ids after the audio has ended. This example
has delays (0, 1, 2) and frames A B C. `e` is end_of_audio, `E` end_of_reply, `.` the pad, and `~` a sampled id that
belongs to no frame of the reply.

               PADDED_WARM_UP    SAMPLED_WARM_UP
    stream 0   A B C …           A B C …
    stream 1   . A B …           ~ A B …
    stream 2   . . A …           ~ ~ A …

               FORCED_TAIL    SAMPLED_TAIL    NO_TAIL
    stream 0   C e E          C e ~ E         C ~ ~ e
    stream 1   B C .          B C ~ ~         B C ~ .
    stream 2   A B C          A B C ~         A B C .

`since_end` in `engine/rules.py` is a row's position relative to the end_of_audio row: 0 in that row, negative before
it, positive after it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np


def delay_codes(codes: np.ndarray, delays: tuple[int, ...], pad: int) -> np.ndarray:
    """Apply the delay pattern: codebook k of frame t goes to row `t + delays[k]`.

    Codes [K, T] become rows [T + max(delays), K].
    """
    num_codebooks, num_frames = codes.shape
    rows = np.full((num_frames + max(delays), num_codebooks), pad, codes.dtype)
    for k, delay in enumerate(delays):
        rows[delay : delay + num_frames, k] = codes[k]
    return rows


def undelay_codes(rows: np.ndarray, delays: tuple[int, ...]) -> np.ndarray:
    """Invert `delay_codes`: rows [T + max(delays), K] -> codes [K, T]."""
    num_frames = rows.shape[0] - max(delays)
    return np.stack([rows[delay : delay + num_frames, k] for k, delay in enumerate(delays)])


class Undelayer:
    """Incremental inverse of `delay_codes`.

    A frame is complete once the id of its most delayed codebook has arrived.
    """

    def __init__(self, delays: tuple[int, ...]):
        self._delays = delays
        self._longest = max(delays, default=0)
        self._rows = np.zeros((0, len(delays)), np.int64)

    @property
    def num_ready(self) -> int:
        """Number of complete frames that have not been popped yet."""
        return max(0, len(self._rows) - self._longest)

    def push(self, rows: np.ndarray) -> None:
        """Append generated rows, [n, K]."""
        self._rows = np.concatenate([self._rows, rows])

    def pop_frames(self, num_frames: int) -> np.ndarray:
        """Remove and return the next `num_frames` complete frames, [K, num_frames]."""
        assert 0 < num_frames <= self.num_ready, (num_frames, self.num_ready)
        rows = self._rows[: num_frames + self._longest]
        self._rows = self._rows[num_frames:]
        return undelay_codes(rows, self._delays)


class Segment(IntEnum):
    """Kind of reply segment that a row belongs to."""

    TEXT = 0
    TRANSITION = 1
    AUDIO = 2
    TAIL = 3
    INTERLEAVED = 4


@dataclass(frozen=True)
class FrameCodec:
    """Mapping between the audio rows of a reply and frames of codes.

    A frame is one row by default. A model with a single stream may spread a frame over several rows:

        row            0    1    2    3    4    5
        id             a0   b0   c0   a1   b1   c1      a in places[0], b in places[1], c in places[2]
        frame          0              1

    Audio ends between two frames. A frame that is cut by a length limit is dropped.

    Attributes:
        places: Interval of ids for each row of a frame, one id per code; empty if a frame is one row.
    """

    places: tuple[range, ...] = ()

    def __post_init__(self) -> None:
        if len({len(ids) for ids in self.places}) > 1:
            raise ValueError(f"all places of a frame must have equally many ids, got {self.places}")

    @cached_property
    def rows_per_frame(self) -> int:
        return len(self.places) or 1


ROWS_ARE_FRAMES = FrameCodec()


TABLE_PART = 8  # a table of latents may have at most 1 / TABLE_PART of the size of the KV cache


@dataclass(frozen=True)
class LatentSpec:
    """Latent vectors in frame rows, stored as words: int32 numbers with the bits of float32 numbers.

    stream 0                                  streams 1 ... num_words
    first id of `audio[0]`: a frame           words of its latent
    second, if any: where speech ends         words of its latent
    an id of `voice_ids`: a recorded voice    words of a latent of the recording, in prompts only
    any other id                              0, the bits of 0.0

    The model generates the latent of a row from the hidden state of the row before it, and reads it as an embedding.
    If `audio[0]` has a second id, it marks the frame in which the model detects the end of speech. The reply continues
    for a fixed number of rows (`LatentSampling.tail_rows`). Only the first words, on `codebook_streams`, are decoded.

    Attributes:
        voice_ids: Ids of rows with latents of a recording, for which the model has a separate embedding network.
        has_unit_noise: True if the solver's initial noise has a variance of 1 and every frame is guided; False if the
            audio temperature is the variance.
        num_other_words: Number of words after the latent's own. The family's sampler writes them.
    """

    num_words: int
    steps: range = range(1, 2)
    voice_ids: range = range(0)
    has_unit_noise: bool = False
    num_other_words: int = 0

    @property
    def size(self) -> int:
        return self.num_words - self.num_other_words

    def cache_bytes(self, num_slots: int, num_rows: int) -> int:
        """Return the minimum size of the KV cache in bytes: TABLE_PART times the table of latents."""
        return TABLE_PART * (num_rows + 1) * num_slots * self.num_words * 4  # float32

    def max_rows(self, num_slots: int, cache_bytes: int) -> int:
        """Return the maximum number of rows of a request if the KV cache has `cache_bytes` bytes."""
        return max(cache_bytes // self.cache_bytes(num_slots, 0) - 1, 0)


def words_of(latents: np.ndarray) -> np.ndarray:
    """Reinterpret latents as words: float32 [..., D] -> int32 [..., D]."""
    return np.ascontiguousarray(latents, np.float32).view(np.int32)


def latents_of(words: np.ndarray) -> np.ndarray:
    """Reinterpret words as latents: integers [..., D] -> float32 [..., D]."""
    return np.ascontiguousarray(words, np.int32).view(np.float32)


@dataclass(frozen=True)
class StreamLayout:
    """Streams of a model family.

    Attributes:
        audio: Interval of ids of each output stream in an audio segment; for a codebook, one id per code. Streams of
            latent words have none.
        extra: Additional ids of each output stream in an audio segment that are not codes, such as pads and markers.
        delays: Delay of each output stream in rows; `delays[0] == 0`.
        codebook_streams: Indices of the output streams that are codebooks, in the codec's order.
        initial: Ids of the output streams in prompts before their first frame, which are never sampled; may be empty.
        pad_id: Id of a stream in rows in which it is empty.
        latents: Latents on streams 1 and up; None if all output streams carry ids.
    """

    vocab_size: int
    audio: tuple[range, ...]
    delays: tuple[int, ...]
    codebook_streams: tuple[int, ...]
    num_input_only: int = 0
    pad_id: int = 0
    extra: tuple[tuple[int, ...], ...] = ()
    initial: tuple[int, ...] = ()
    frame_codec: FrameCodec = ROWS_ARE_FRAMES
    latents: LatentSpec | None = None

    def __post_init__(self) -> None:
        if self.latents is not None:
            self._check_latents(self.latents)
            return
        if len(self.delays) != len(self.audio) or self.delays[0] != 0:
            raise ValueError(f"delays must start with 0 and have {len(self.audio)} entries, got {self.delays}")
        if min(self.delays) < 0:
            raise ValueError(f"delays must be >= 0, got {self.delays}")
        if any(ids.stop > self.vocab_size or ids.start < 0 for ids in self.audio):
            raise ValueError(f"intervals must lie in [0, {self.vocab_size}), got {self.audio}")
        if not all(0 <= s < len(self.audio) for s in self.codebook_streams):
            raise ValueError(f"codebook_streams must be in [0, {len(self.audio)}), got {self.codebook_streams}")
        if self.extra and len(self.extra) != len(self.audio):
            raise ValueError(f"extra must have {len(self.audio)} entries, one per stream, got {len(self.extra)}")
        if self.initial and len(self.initial) != len(self.audio):
            raise ValueError(f"initial must have {len(self.audio)} ids, one per stream, got {len(self.initial)}")
        if any(not 0 <= token < self.vocab_size for ids in self.extra for token in ids):
            raise ValueError(f"extra ids must lie in [0, {self.vocab_size}), got {self.extra}")
        if len({len(self.audio[s]) for s in self.codebook_streams}) > 1:
            raise ValueError("all codebooks must have the same size")
        places = self.frame_codec.places
        if places and (self.num_input_streams > 1 or self.extra or self.codebook_streams != (0,)):
            raise ValueError("frames of several rows need one stream, a codebook without extra ids")
        if any(not self.audio[0].start <= ids.start < ids.stop <= self.audio[0].stop for ids in places):
            raise ValueError(f"places must lie in {self.audio[0]}, got {places}")

    @classmethod
    def of_frames(cls, starts: Sequence[int], size: int, **others: Any) -> Self:
        """Return the layout of a family whose audio rows are frames: all output streams are codebooks without delays.

        Args:
            starts: First id of each codebook. The vocabulary ends with the codes of the last one.
            size: Number of codes per codebook.
        """
        return cls(
            vocab_size=starts[-1] + size,
            audio=tuple(range(start, start + size) for start in starts),
            delays=(0,) * len(starts),
            codebook_streams=tuple(range(len(starts))),
            **others,
        )

    @classmethod
    def of_text(cls, vocab_size: int, pad_id: int, num_input_only: int = 0) -> Self:
        """Return the layout of a family that generates only text."""
        return cls(
            vocab_size=vocab_size,
            audio=(range(0),),
            delays=(0,),
            codebook_streams=(),
            pad_id=pad_id,
            num_input_only=num_input_only,
        )

    def _check_latents(self, latents: LatentSpec) -> None:
        streams = tuple(range(1, 1 + len(self.codebook_streams)))
        if len(self.audio) != 1 or len(self.audio[0]) not in (1, 2) or self.audio[0].stop > self.vocab_size:
            raise ValueError(f"with latents, audio must be one interval of 1 or 2 ids, got {self.audio}")
        if self.codebook_streams != streams or self.delays != (0,) * (1 + latents.num_words):
            raise ValueError(f"streams 1 to {len(streams)} must be the words of latents, without delays")
        if not 1 <= len(streams) <= latents.num_words or len(self.extra) > 1:
            expected = f"1 to {latents.num_words} decoded words, and extra ids of stream 0 only"
            got = f"{len(streams)} words, and extra ids of {len(self.extra)} streams"
            raise ValueError(f"expected {expected}, got {got}")
        if latents.voice_ids and not 0 <= latents.voice_ids.start < latents.voice_ids.stop <= self.vocab_size:
            raise ValueError(f"voice_ids must lie in [0, {self.vocab_size}), got {latents.voice_ids}")
        if self.pad_id != 0 or self.frame_codec.places:
            raise ValueError("latents need the pad id 0 and one row per frame")

    @cached_property
    def num_output_streams(self) -> int:
        return len(self.audio) + (0 if self.latents is None else self.latents.num_words)

    @cached_property
    def num_input_streams(self) -> int:
        return self.num_output_streams + self.num_input_only

    @cached_property
    def num_codebooks(self) -> int:
        return len(self.frame_codec.places) or len(self.codebook_streams)

    @cached_property
    def codebook_size(self) -> int:
        """Number of codes of each codebook; 0 for latents, and for families that generate no codes."""
        return (
            0
            if self.latents or not self.codebook_streams
            else len((self.frame_codec.places or (self.audio[self.codebook_streams[0]],))[0])
        )

    @cached_property
    def max_delay(self) -> int:
        return max(self.delays)

    @cached_property
    def pad_is_silent(self) -> bool:
        """True if the pad is no `extra` id of streams 1 and up: it then adds nothing to an embedding."""
        return not any(self.pad_id in ids for ids in self.extra[1:])


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Ids of a delayed stream before its first frame: sampled ids if `is_sampled`, otherwise pads."""

    is_sampled: bool


class Tail(ABC):
    """Rows after end_of_audio, in which the delayed streams complete the last frame.

    Attributes:
        cut_rows: Number of rows that the tail lacks if a length limit forced end_of_audio.
    """

    cut_rows: ClassVar[int] = 0

    @abstractmethod
    def num_rows(self, max_delay: int) -> int:
        """Return the number of rows from end_of_audio to end_of_reply, if there is a frame; 0 if they are one row."""

    @abstractmethod
    def last_kept(self, delay: int) -> int:
        """Return the last row in which a stream of this delay has a sampled id instead of a pad.

        Rows are counted from that of end_of_audio, row 0. The result is negative if the stream ends before that row,
        and very large if the stream is sampled to the end.
        """

    def num_closing_rows(self, max_delay: int) -> int:
        """Return the number of rows directly before end_of_audio in which no frame begins."""
        return 0


@dataclass(frozen=True)
class ForcedTail(Tail):
    """Tail in which delayed streams complete the last frame and are then padded; stream 0 is all padding."""

    def num_rows(self, max_delay: int) -> int:
        """Return the largest delay minus 1, but at least 1: the end_of_reply row completes the last frame."""
        return max(1, max_delay - 1)

    def last_kept(self, delay: int) -> int:
        return delay - 1


@dataclass(frozen=True)
class SampledTail(Tail):
    """Tail that has as many rows as the largest delay, and in which all streams are sampled."""

    def num_rows(self, max_delay: int) -> int:
        """Return the largest delay, but at least 1. This is one row more than the last frame needs."""
        return max(1, max_delay)

    def last_kept(self, delay: int) -> int:
        return 1 << 30


@dataclass(frozen=True)
class NoTail(Tail):
    """No tail: the reply ends with end_of_audio, because the rows before it complete the last frame."""

    def num_rows(self, max_delay: int) -> int:
        return 0

    def last_kept(self, delay: int) -> int:
        return -1

    def num_closing_rows(self, max_delay: int) -> int:
        return max_delay


PADDED_WARM_UP = WarmUp(is_sampled=False)
SAMPLED_WARM_UP = WarmUp(is_sampled=True)
FORCED_TAIL = ForcedTail()
SAMPLED_TAIL = SampledTail()
NO_TAIL = NoTail()
