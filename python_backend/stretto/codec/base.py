"""The seam between a codec and everything that uses one."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Windowed:
    """A codec that streams by looking at a frame's neighbours: `left` frames before a window and `right` after it."""

    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Stateful:
    """A codec that carries a state from window to window; beside it, it may need neighbours as `Windowed` does.

    start: frames that the first window holds at least, unless the utterance ends before. A causal convolution that
    pads the start with its mirror image looks ahead there, and nowhere else.
    """

    left: int = 0
    right: int = 0
    start: int = 0


@dataclass(frozen=True, slots=True)
class Blocks:
    """A codec that decodes whole blocks of frames, each with what it made of those before: it cannot stream exactly.

    What an utterance's samples are depends on where its blocks end, which is fixed: the same samples come of every
    chunking. They are not those of one decode of the whole.

    sizes: frames of each block, the last size again and again. right: frames at a block's end that wait for the next
    one. history: frames before a block that it hears at most; the first of these is a multiple of `step`.
    """

    sizes: tuple[int, ...]
    right: int
    history: int
    step: int = 1

    def __post_init__(self) -> None:
        if not self.sizes or not 0 < self.right < min(self.sizes) or self.history < sum(self.sizes[:-1]) + self.step:
            raise ValueError(f"blocks must be longer than their right context and fit into the history, got {self}")

    @property
    def left(self) -> int:
        """Frames before a window, at most."""
        return self.history - self.right

    @property
    def start(self) -> int:
        """Frames that the first window waits for."""
        return self.sizes[0]

    def size_after(self, border: int) -> int:
        """Frames of the block that begins at a border, be it counted from the utterance's start or from a history's."""
        for size in self.sizes:
            if border <= 0:
                return size
            border -= size
        return self.sizes[-1]

    def last_border(self, frames: int) -> int:
        """Where the last whole block of so many frames ends."""
        border = 0
        while border + self.size_after(border) <= frames:
            border += self.size_after(border)
        return border

    def heard_from(self, border: int) -> int:
        """The first frame that a block hears which begins at a border."""
        return max(0, -(-(border - self.history) // self.step) * self.step)


@dataclass(frozen=True, slots=True)
class Whole:
    """A codec that decodes whole utterances of at most `frames` frames: it does not stream, and there is no context."""

    frames: int
    left: int = 0
    right: int = 0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.left or self.right:
            raise ValueError(f"an utterance must have a frame at least, and no context, got {self}")

    @property
    def start(self) -> int:
        """Frames that the first window waits for, unless the utterance ends before."""
        return self.frames


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """What a codec is. Frame t covers samples [t, t + 1) * samples_per_frame of the waveform.

    num_codebooks: that codes have. A codec decodes those of its first codebooks alone, too: `with_codebooks`.
    streaming: the context that `decode` needs around a window so that its samples are exactly those of one decode of
    the whole utterance; or the blocks, or the whole, of a codec that knows no such context. tail_samples: by how many
    samples the last frame of an utterance falls short of a whole frame (odd strides); such a codec looks ahead, so a
    window without right context is known to end the utterance. heard_rate: of the audio that codes are made of, in Hz,
    if it is not `sample_rate`. num_voices: in how many voices the codec speaks, where codes alone do not say how they
    sound; the state of an utterance, [B, 1], is then the number of its voice.
    """

    name: str
    sample_rate: int
    samples_per_frame: int
    num_codebooks: int
    codebook_size: int
    streaming: Windowed | Stateful | Blocks | Whole
    tail_samples: int = 0
    heard_rate: int | None = None
    num_voices: int = 0

    def __post_init__(self) -> None:
        if self.left_frames < 0 or not self.least_right_frames <= self.right_frames:
            raise ValueError(f"{self.name}: {self.streaming} is too little context, tail_samples {self.tail_samples}")

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.samples_per_frame

    @property
    def left_frames(self) -> int:
        """Context before a window."""
        return self.streaming.left

    @property
    def right_frames(self) -> int:
        """Context after a window: frames that a window waits for."""
        return self.streaming.right

    @property
    def start_frames(self) -> int:
        """Frames, context included, that an utterance's first window waits for, if that is more than `right_frames`."""
        return 0 if isinstance(self.streaming, Windowed) else self.streaming.start

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of the blocks that it decodes as wholes, the last again and again; () where frames may come anyhow."""
        return self.streaming.sizes if isinstance(self.streaming, Blocks) else ()

    @property
    def max_frames(self) -> int | None:
        """Frames that an utterance may have; None: any number."""
        return self.streaming.frames if isinstance(self.streaming, Whole) else None

    @property
    def least_right_frames(self) -> int:
        """The least right context that any setting may ask for."""
        return self.streaming.right if isinstance(self.streaming, Blocks) else int(self.tail_samples > 0)

    def complete(self, frames: int) -> int:
        """How many of an utterance's first frames can be decoded, or serve as right context, before more come."""
        if isinstance(self.streaming, Whole):
            return frames if frames >= self.streaming.frames else 0
        return self.streaming.last_border(frames) if isinstance(self.streaming, Blocks) else frames

    def heard_from(self, first: int) -> int:
        """The first frame that a window which begins at frame `first` needs."""
        if isinstance(self.streaming, Blocks):
            return self.streaming.heard_from(first + self.streaming.right)
        return max(0, first - self.streaming.left)

    def num_samples(self, frames: int, right: int) -> int:
        """Samples of a window of `frames` frames with `right` frames of right context: 0 at the utterance's end."""
        return frames * self.samples_per_frame - (self.tail_samples if right == 0 else 0)

    def with_codebooks(self, number: int) -> "CodecSpec":
        """The same codec for codes of its first `number` codebooks alone. ValueError if there are not so many."""
        if not 1 <= number <= self.num_codebooks:
            raise ValueError(f"{self.name} has {self.num_codebooks} codebooks, {number} are asked for")
        return replace(self, num_codebooks=number)

    def with_right_frames(self, right: int) -> "CodecSpec":
        """The same codec heard earlier: less right context than exactness asks for. ValueError if out of range."""
        least, exact = self.least_right_frames, self.right_frames
        if not least <= right <= exact:
            raise ValueError(f"right_frames must be in [{least}, {exact}] for {self.name}, got {right}")
        return replace(self, streaming=replace(self.streaming, right=right))


@dataclass(frozen=True, slots=True)
class Window:
    """Frames [first - left, last + right) of B utterances, of which [first, last) are to be decoded.

    codes: [B, K, left + (last - first) + right] int64. A codec of `Blocks` is given all that it hears, up to a block's
    end; else `left` is below the codec's left_frames only at the true
    start of the utterances, `right` below right_frames only at their true end: windows of one batch share both.
    first: [B] int64, index of the first frame to be decoded in each utterance.
    state: [B, D] as `initial_state` or the previous window of each utterance gave it.
    """

    codes: Tensor
    left: int
    right: int
    first: Tensor
    state: Tensor


class Codec(Protocol):
    """A codec; `decode` of successive windows, concatenated, equals one `decode` of the whole.

    `spec` may be set to one with fewer codebooks or less right context: it says what codes come and go.
    """

    spec: CodecSpec

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Codes [K, T] int64 of mono `pcm` [n] float32 at `spec.sample_rate`."""
        ...

    def initial_state(self, batch: int) -> Tensor:
        """State [batch, D] before the first frame; D is 0 for a codec that carries none."""
        ...

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Waveform [B, n] in [-1, 1] of frames [first, last), and the state for the window that starts at `last`.

        n is `spec.num_samples` of the window. The dtype is that of the codec's weights.
        """
        ...
