"""Interface between a codec and its users."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Windowed:
    """Streaming mode of a codec without state: a window needs `left` frames before it and `right` after it."""

    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Stateful:
    """Streaming mode of a codec with a state; in addition it may need neighbouring frames as `Windowed` does.

    Attributes:
        start: Least number of frames in the first window, unless the utterance is shorter. A causal convolution that
            pads the start by reflection looks ahead there only.
    """

    left: int = 0
    right: int = 0
    start: int = 0


@dataclass(frozen=True, slots=True)
class Blocks:
    """Streaming mode of a codec that decodes whole blocks of frames, each given the previous ones; it is not exact.

    Block borders are fixed, so every chunking gives the same samples. They differ from one decode of the whole
    utterance.

    Attributes:
        sizes: Frames per block, the last size repeated.
        right: Frames at the end of a block that are decoded with the next one.
        history: Largest number of frames before a block that it depends on.
        step: The first of these frames is a multiple of it.
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
        """Largest number of frames before a window."""
        return self.history - self.right

    @property
    def start(self) -> int:
        """Number of frames that the first window waits for."""
        return self.sizes[0]

    def size_after(self, border: int) -> int:
        """Return the size of the block that begins at `border`, counted from the utterance's or a history's start."""
        for size in self.sizes:
            if border <= 0:
                return size
            border -= size
        return self.sizes[-1]

    def last_border(self, frames: int) -> int:
        """Return the end of the last complete block in `frames` frames."""
        border = 0
        while border + self.size_after(border) <= frames:
            border += self.size_after(border)
        return border

    def heard_from(self, border: int) -> int:
        """Return the first frame that the block beginning at `border` depends on."""
        return max(0, -(-(border - self.history) // self.step) * self.step)


@dataclass(frozen=True, slots=True)
class Whole:
    """Mode of a codec that decodes whole utterances of at most `frames` frames and does not stream."""

    frames: int
    left: int = 0
    right: int = 0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.left or self.right:
            raise ValueError(f"an utterance must have a frame at least, and no context, got {self}")

    @property
    def start(self) -> int:
        """Number of frames that the first window waits for, unless the utterance is shorter."""
        return self.frames


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Constants of a codec. Frame t covers samples [t, t + 1) * samples_per_frame of the waveform.

    Attributes:
        num_codebooks: Number of codebooks; see `with_codebooks` for fewer.
        streaming: Context that makes the samples of a window equal to those of one decode of the whole utterance, or
            the blocks, or the whole, of a codec without such a context.
        tail_samples: Number of samples missing from the last frame (odd strides). Such a codec looks ahead, so a window
            without right context ends the utterance.
        heard_rate: Sample rate of the audio to encode in Hz, if it differs from `sample_rate`.
        num_voices: Number of voices, if codes alone do not define the voice. The state of an utterance, [B, 1], is then
            its voice's number.
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
        """Number of context frames before a window."""
        return self.streaming.left

    @property
    def right_frames(self) -> int:
        """Number of context frames after a window, which the window waits for."""
        return self.streaming.right

    @property
    def start_frames(self) -> int:
        """Frames, context included, that the first window waits for, if more than `right_frames`."""
        return 0 if isinstance(self.streaming, Windowed) else self.streaming.start

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of blocks decoded as a whole, the last repeated. Empty if chunks of any size are accepted."""
        return self.streaming.sizes if isinstance(self.streaming, Blocks) else ()

    @property
    def max_frames(self) -> int | None:
        """Largest number of frames of an utterance, or None for any number."""
        return self.streaming.frames if isinstance(self.streaming, Whole) else None

    @property
    def least_right_frames(self) -> int:
        """Least right context that may be configured."""
        return self.streaming.right if isinstance(self.streaming, Blocks) else int(self.tail_samples > 0)

    def complete(self, frames: int) -> int:
        """Return the number of frames, of the first `frames`, that can already be decoded or be right context."""
        if isinstance(self.streaming, Whole):
            return frames if frames >= self.streaming.frames else 0
        return self.streaming.last_border(frames) if isinstance(self.streaming, Blocks) else frames

    def heard_from(self, first: int) -> int:
        """Return the first frame that a window beginning at frame `first` needs."""
        if isinstance(self.streaming, Blocks):
            return self.streaming.heard_from(first + self.streaming.right)
        return max(0, first - self.streaming.left)

    def num_samples(self, frames: int, right: int) -> int:
        """Return the samples of a window of `frames` frames with `right` context frames (0 at the utterance's end)."""
        return frames * self.samples_per_frame - (self.tail_samples if right == 0 else 0)

    def with_codebooks(self, number: int) -> "CodecSpec":
        """Return the spec for the first `number` codebooks only; raise ValueError if there are fewer."""
        if not 1 <= number <= self.num_codebooks:
            raise ValueError(f"{self.name} has {self.num_codebooks} codebooks, {number} are asked for")
        return replace(self, num_codebooks=number)

    def with_right_frames(self, right: int) -> "CodecSpec":
        """Return the spec with less right context than exactness needs; raise ValueError if out of range."""
        least, exact = self.least_right_frames, self.right_frames
        if not least <= right <= exact:
            raise ValueError(f"right_frames must be in [{least}, {exact}] for {self.name}, got {right}")
        return replace(self, streaming=replace(self.streaming, right=right))


@dataclass(frozen=True, slots=True)
class Window:
    """Frames [first - left, last + right) of B utterances, of which [first, last) are decoded.

    A codec with `Blocks` gets all frames that it depends on, up to the end of a block. For other codecs, `left` is
    below left_frames only at the true start of the utterances, and `right` below right_frames only at their true end.
    Windows of a batch share both.

    Attributes:
        codes: int64 [B, K, left + (last - first) + right].
        first: Index of the first frame to decode in each utterance, int64 [B].
        state: State from `initial_state` or the previous window, [B, D].
    """

    codes: Tensor
    left: int
    right: int
    first: Tensor
    state: Tensor


class Codec(Protocol):
    """Codec whose decoded windows, concatenated, equal one decode of the whole.

    `spec` may be replaced by one with fewer codebooks or less right context.
    """

    spec: CodecSpec

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return the codes, int64 [K, T], of mono `pcm`, float32 [n] at `spec.sample_rate`."""
        ...

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first frame, [batch, D]; D is 0 for a codec without state."""
        ...

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return the waveform [B, n] in [-1, 1] of frames [first, last), and the state for the next window.

        n is `spec.num_samples` of the window. The dtype is that of the codec's weights.
        """
        ...
