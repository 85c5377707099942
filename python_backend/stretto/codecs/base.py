"""Codec protocol: constants, streaming modes, decoding windows and state.

Codecs are found by name: installed packages register codec modules as entry points of the group `stretto.codecs`.

A codec module has `load(directory, device)`, which returns a `Codec` or raises CheckpointError. Optional attributes:

    published_shape(directory) -> (K, C)    for `stretto convert --codec`: number of codebooks, and codebook size
    HAS_PREFIXES = True                         if a model may use only the first codebooks
    TRANSFORMERS = config class, model class    for `stretto convert --codec-from-model`
    MARKS = {tensor: description}               tensor names that occur only in this codec, for error messages about a
                                                file that contains this codec instead of the expected model
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from stretto.entry_points import CODECS, Installed, find, installed, names
from stretto.errors import CheckpointError
from stretto.weights.bounded_networks import bounded_networks


@dataclass(frozen=True, slots=True)
class Windowed:
    """Streaming mode of a stateless codec that needs `left` frames before and `right` frames after a window."""

    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Stateful:
    """Streaming mode of a codec with a state. It may also need neighbouring frames, as in `Windowed`.

    Attributes:
        start: Minimum number of frames in the first window, unless the utterance is shorter. A causal convolution with
            reflection padding looks ahead at the start only.
    """

    left: int = 0
    right: int = 0
    start: int = 0


@dataclass(frozen=True, slots=True)
class Blocks:
    """Streaming mode of a codec that decodes whole blocks of frames, each conditioned on earlier ones.

    Block borders are fixed, so every chunking gives the same samples. They equal those of a single decode of the whole
    utterance only if no frame depends on later blocks than its own.

    Attributes:
        sizes: Number of frames in each block; the last size repeats.
        right: Number of frames at the end of a block that are decoded with the next block.
        history: Maximum number of preceding frames that the samples of a block depend on.
        step: The index of the first history frame is a multiple of `step`.
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
        """Maximum number of preceding frames that the samples of a window depend on."""
        return self.history - self.right

    @property
    def start(self) -> int:
        """Number of frames that must be present before the first window can be decoded."""
        return self.sizes[0]

    def size_after(self, border: int) -> int:
        """Return the size of the block that begins at frame `border`, counted from the start of the first block."""
        for size in self.sizes:
            if border <= 0:
                return size
            border -= size
        return self.sizes[-1]

    def last_border(self, frames: int) -> int:
        """Return the end of the last complete block among the first `frames` frames."""
        border = 0
        while border + self.size_after(border) <= frames:
            border += self.size_after(border)
        return border

    def first_needed(self, border: int) -> int:
        """Return the index of the first frame that the block beginning at `border` depends on."""
        return max(0, -(-(border - self.history) // self.step) * self.step)


@dataclass(frozen=True, slots=True)
class Whole:
    """Mode of a codec that does not stream: it decodes a whole utterance of at most `frames` frames in one pass."""

    frames: int
    left: int = 0
    right: int = 0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.left or self.right:
            raise ValueError(f"an utterance must have at least one frame, and no context, got {self}")

    @property
    def start(self) -> int:
        """Number of frames that must be present before decoding, unless the utterance is shorter."""
        return self.frames


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Constants of a codec. Frame t covers samples [t, t + 1) * samples_per_frame of the waveform.

    Attributes:
        streaming: `Windowed` or `Stateful` if a window with enough context has the same samples as in a single decode
            of the whole utterance; otherwise `Blocks` or `Whole`.
        tail_samples: Number of samples by which the last frame is shorter than the others (odd strides). Such a codec
            looks ahead, so a window without right context is the end of the utterance. Negative if samples follow the
            last frame. If the value is a whole frame, the last frame is not played unless it is the only one.
        input_rate: Sample rate of the audio to encode in Hz, if it differs from `sample_rate`.
        num_voices: Number of voices, if codes alone do not define the voice. The first element of an utterance's state
            is then the index of its voice.
        are_latents: True if frames are latents. Codes are then words, the bits of float32 numbers, with one word per
            element of a latent, and `codebook_size` is 0.
        reads_on_host: True if `decode` needs values of its input on the host, so that no CUDA graph can contain it. It
            then gets codes and frame indices in host memory.
        max_batch: Maximum number of windows decoded at once, because states are large; None for no limit.
        reads_rows: True if `decode` reads and writes states in rows of a table (`Window.rows`).
    """

    name: str
    sample_rate: int
    samples_per_frame: int
    num_codebooks: int
    codebook_size: int
    streaming: Windowed | Stateful | Blocks | Whole
    tail_samples: int = 0
    input_rate: int | None = None
    num_voices: int = 0
    are_latents: bool = False
    reads_on_host: bool = False
    max_batch: int | None = None
    reads_rows: bool = False

    def __post_init__(self) -> None:
        if self.left_frames < 0 or not self.min_right_frames <= self.right_frames:
            raise ValueError(
                f"{self.name}: tail_samples {self.tail_samples} require more context than {self.streaming}"
            )

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
        """Number of context frames after a window, which must be present before the window can be decoded."""
        return self.streaming.right

    @property
    def start_frames(self) -> int:
        """Number of frames, including context, required for the first window, if more than `right_frames`."""
        return 0 if isinstance(self.streaming, Windowed) else self.streaming.start

    @property
    def lookahead_frames(self) -> int:
        """Maximum number of frames after its own frame that a sample depends on."""
        return max(self.right_frames, self.start_frames, self.right_frames + max(self.blocks, default=0))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of blocks that are decoded as a whole; the last one repeats. Empty if any chunk size is accepted."""
        return self.streaming.sizes if isinstance(self.streaming, Blocks) else ()

    @property
    def max_frames(self) -> int | None:
        """Maximum number of frames in an utterance, or None for no limit."""
        return self.streaming.frames if isinstance(self.streaming, Whole) else None

    @property
    def can_pad(self) -> bool:
        """True if frames that follow an utterance change none of its samples, so that its last window may be padded."""
        is_streaming = isinstance(self.streaming, Windowed | Stateful)
        return is_streaming and not self.right_frames and not self.start_frames and not self.tail_samples

    @property
    def decodes_first(self) -> bool:
        """True if the first chunk of an utterance can be decoded as soon as its codes are known."""
        return self.can_pad and self.can_capture and not self.are_latents

    def check_decodes_first(self, first_chunk: str) -> None:
        """Raise CheckpointError unless `decodes_first`, which the option `first_chunk` requires."""
        if not self.decodes_first:
            expected = f"null, because the codec {self.name} needs more than the first codes"
            raise CheckpointError(f"first_chunk: expected {expected}, got {first_chunk}")

    @property
    def can_capture(self) -> bool:
        """True if a CUDA graph of `decode` is possible and useful.

        Whole utterances rarely have the same length. If the codec has voices, utterances begin with different states,
        which are not in the table of states.
        """
        return not self.reads_on_host and self.max_frames is None and not self.num_voices

    @property
    def min_right_frames(self) -> int:
        """Minimum right context that can be configured, in frames."""
        if isinstance(self.streaming, Windowed | Stateful):
            return int(self.tail_samples > 0)
        return self.streaming.right

    def complete(self, frames: int) -> int:
        """Return how many of the first `frames` frames can already be decoded or used as right context."""
        if isinstance(self.streaming, Whole):
            return frames if frames >= self.streaming.frames else 0
        return self.streaming.last_border(frames) if isinstance(self.streaming, Blocks) else frames

    def first_needed(self, first: int) -> int:
        """Return the index of the first frame that is needed to decode a window beginning at frame `first`."""
        if isinstance(self.streaming, Blocks):
            return self.streaming.first_needed(first + self.streaming.right)
        return max(0, first - self.streaming.left)

    def num_samples(self, frames: int, right: int) -> int:
        """Return the number of samples in a window of `frames` frames without context.

        The window is the end of the utterance if no frames of right context follow.
        """
        samples = frames * self.samples_per_frame
        return samples if right or samples == self.tail_samples else samples - self.tail_samples

    def with_codebooks(self, number: int) -> "CodecSpec":
        """Return the spec with only the first `number` codebooks; raise ValueError if there are fewer.

        For latents, `number` must equal their size, because all elements are always needed.
        """
        if self.are_latents and number != self.num_codebooks:
            raise ValueError(f"expected {self.num_codebooks} numbers in latents of {self.name}, got {number}")
        if not 1 <= number <= self.num_codebooks:
            raise ValueError(f"expected 1 to {self.num_codebooks} codebooks of {self.name}, got {number}")
        return replace(self, num_codebooks=number)

    def with_right_frames(self, right: int) -> "CodecSpec":
        """Return the spec with less right context, at which samples may not be exact.

        Raise ValueError unless `min_right_frames` <= right <= `right_frames`.
        """
        least = self.min_right_frames
        exact = self.right_frames
        if not least <= right <= exact:
            raise ValueError(f"right_frames must be in [{least}, {exact}] for {self.name}, got {right}")
        return replace(self, streaming=replace(self.streaming, right=right))


@dataclass(frozen=True, slots=True)
class Window:
    """Frames [first - left, last + right) of B utterances; the frames [first, last) are to be decoded.

    For a codec with `Blocks`, the window contains all frames that it depends on, up to the end of a block. For other
    codecs, `left` is below `left_frames` only at the start of the utterances, and `right` below `right_frames` only at
    their end. All windows of a batch have the same `left` and `right`.

    Attributes:
        codes: int64 [B, K, left + (last - first) + right].
        first: Index of the first frame to decode in each utterance, int64 [B].
        state: State from `initial_state`, or after the previous window, [B, D]; with `rows`, the table of all
            utterances' states, [R, D].
        rows: Rows of the table with the states before the window, and rows to which the states after it are written,
            int64 [2, B] on the device of `state`. No row is both. None without a table, which only codecs with
            `CodecSpec.reads_rows` get.
    """

    codes: Tensor
    left: int
    right: int
    first: Tensor
    state: Tensor
    rows: Tensor | None = None


class Codec(Protocol):
    """Neural codec that decodes an utterance window by window.

    The concatenated samples of the windows equal those of a single decode of the whole utterance, except with `Blocks`.
    `spec` may be replaced by one with fewer codebooks or less right context.
    """

    spec: CodecSpec

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n] at `spec.input_rate or spec.sample_rate`, to codes, int64 [K, T]."""
        ...

    def initial_state(self, batch: int) -> Tensor:
        """Return the state before the first frame of `batch` utterances, [batch, D]; D is 0 for a stateless codec."""
        ...

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode a window.

        Returns:
            Waveform of frames [first, last), [B, n] in [-1, 1], in the dtype of the codec's weights, with n given by
            `spec.num_samples`; and the state after the window, [B, D], or the table.
        """
        ...


@runtime_checkable
class RecordedVoices(Protocol):
    """Codec that supports recorded voices in addition to its own.

    The first element of an utterance's state is the number of its voice. Only the decoder thread calls these methods.
    """

    def add_voice(self, tokens: np.ndarray, mel: np.ndarray, x_vector: np.ndarray, *prompt: np.ndarray) -> int:
        """Add the voice of a recording.

        Args:
            tokens: Codes of the recording, int32 [n].
            mel: Its mel spectrogram, float32 [F, M].
            x_vector: x-vector of the speaker, float32 [E].
            prompt: Ids of the text, int32 [T], and rows of the voice in the prompt, float32 [N · H], for a codec that
                reads them.

        Returns:
            Number of the voice, at least `spec.num_voices`.

        Raises:
            InvalidRequest: If an array has a size or values that the codec does not accept.
        """
        ...

    def remove_voice(self, number: int) -> None:
        """Remove a voice that was added; its number may be used again."""
        ...


@runtime_checkable
class ProgressSource(Protocol):
    """Codec that may take minutes to decode a window, and reports progress meanwhile."""

    def report_progress(self, call: Callable[[], None]) -> None:
        """Make `decode` call `call` after each of its steps."""
        ...


logger = logging.getLogger(__name__)


def use_whole_float32() -> None:
    """Compute float32 products and convolutions of this process without TF32, in which GPUs round to 10 bits.

    With TF32, the samples of consecutive windows would join with errors above 1e-5, and a GPU would encode a recording
    to other codes than a CPU.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def codec_module(name: str) -> Any:
    """Return the module of a codec. An unknown name raises KeyError, an ambiguous or broken one CheckpointError."""
    registered = find(CODECS, name)
    if registered is None:
        raise KeyError(f"unknown codec {name!r}; installed: {names(CODECS)}")
    return _module(registered)


def _module(registered: Installed) -> Any:
    loaded: Any = registered.load()
    if not isinstance(loaded, ModuleType) or not hasattr(loaded, "load"):
        raise CheckpointError(
            f"codec {registered.name}: expected a module with `load`, got {registered.entry_point.value}"
        )
    return loaded


def _modules() -> Iterator[tuple[str, Any]]:
    """Yield the names and modules of all installed codecs; those that cannot be imported are logged and skipped."""
    for registered in installed(CODECS):
        try:
            yield registered.name, _module(registered)
        except CheckpointError as error:
            logger.warning("%s", error)


def codecs_in_transformers() -> list[str]:
    """Return the names of the codecs that transformers has classes for (see `TRANSFORMERS`)."""
    return [name for name, module in _modules() if hasattr(module, "TRANSFORMERS")]


def codec_marks() -> dict[str, str]:
    """Map each tensor name that occurs in only one codec (`MARKS`) to a description of that codec."""
    return {name: description for _, module in _modules() for name, description in getattr(module, "MARKS", {}).items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations on one thread in the `with` block.

    Loading consists of hundreds of small operations. On a busy machine, each would wait until all threads have run.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def load_codec(name: str, directory: Path, device: str = "cpu", num_codebooks: int | None = None) -> Codec:
    """Load the codec called `name`.

    Args:
        num_codebooks: Number of codebooks to use, counted from the first; None for all.

    Raises:
        KeyError: If the name is unknown.
        CheckpointError: If a file is missing or does not fit the codec, or there are too few codebooks.
    """
    module = codec_module(name)
    with bounded_networks(), one_thread():
        codec: Codec = module.load(directory, device)
    if num_codebooks is not None:
        try:
            codec.spec = codec.spec.with_codebooks(num_codebooks)
        except ValueError as error:
            raise CheckpointError(f"{directory}: {error}") from error
    return codec
