"""State of causal layers between windows, which every layer reads and writes in turn."""

from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor, nn

from stretto.codecs.base import Window
from stretto.codecs.device import StatePart
from stretto.codecs.streaming import Elu, Snake, joined


class Memory:
    """State [B, D] for a window; layers read it from front to back while they write the next state.

    Each layer reads and writes its own part. A zero state equals the zero padding of a causal convolution.

    Args:
        state: State before the window, [B, D].
        first: Index of the first frame in the window, [B].
        frames: Number of frames in the window, including right context.
        right: Number of right-context frames, which the next window contains again.
        rows: As in `Window`; the state is then a table.

    Attributes:
        after: State after the window, [B, D], or the table.
    """

    def __init__(self, state: Tensor, first: Tensor, frames: int, right: int = 0, rows: Tensor | None = None) -> None:
        self._before = state
        self._first = first
        self._frames = frames
        self.right = right
        self._rows = rows
        self.after = torch.empty_like(state) if rows is None else state
        self._at = 0

    @property
    def is_start(self) -> Tensor:
        """True for utterances that begin with the window, bool [B]."""
        return self._first == 0

    @property
    def is_complete(self) -> bool:
        """True if all layers have written their part of the next state."""
        return self._at == self.after.shape[1]

    def recall(self, x: Tensor, steps: int, time: int = 2, activation: Snake | Elu | None = None) -> Tensor:
        """Return a layer's input preceded by its last `steps` inputs, and write the new last inputs to the next state.

        Inputs that the next window contains again are not written.

        Args:
            x: New inputs, [B, …].
            steps: Number of earlier inputs that the layer needs.
            time: Dimension of the steps in `x`.
            activation: Activation of `x`, for inputs with time 2.
        """
        begin = self._at
        stop = begin + x[0].numel() // x.shape[time] * steps
        self._at = stop
        again = x.shape[time] * self.right // self._frames
        shape = [*x.shape[:time], steps, *x.shape[time + 1 :]]
        before = self._read(begin, stop).view(shape)
        both = joined(before, x, activation) if time == 2 else torch.cat([before, x], time)
        kept = both.narrow(time, both.shape[time] - again - steps, steps)
        if self._rows is None:
            self.after[:, begin:stop].view(shape).copy_(kept)
        else:
            self.after[:, begin:stop].index_copy_(0, self._rows[1], kept.flatten(1))
        return both

    def _read(self, begin: int, stop: int) -> Tensor:
        """Return elements of the state before the window, [B, stop - begin]."""
        elements = self._before[:, begin:stop]
        return elements if self._rows is None else elements.index_select(0, self._rows[0])

    def part(self, size: int, num_new: int, late: int = 0) -> StatePart:
        """Return the next `size` elements of the state for a GPU layer with `num_new` new steps.

        The elements are steps of all channels.
        """
        begin = self._at
        self._at = begin + size
        again = num_new * self.right // self._frames
        if not size:
            return StatePart(None, None, again, self._first, late)
        before = self._before[:, begin : self._at]
        after = self.after[:, begin : self._at]
        return StatePart(before, after, again, self._first, late, self._rows)

    def split(self, batch: int, size: int) -> Iterator[tuple[slice, "Memory"]]:
        """Yield batch rows, `size` at a time, with their memory. Each part must be read by the same layers."""
        begun = self._at
        for first in range(0, batch, size):
            rows = slice(first, first + size)
            memory = copy(self)
            memory._before = self._before[rows]
            memory.after = self.after[rows]
            memory._first = self._first[rows]
            memory._at = begun
            yield rows, memory
            self._at = memory._at

    def masked_start(self, x: Tensor, late: int) -> Tensor:
        """Return x [B, C, n] with the first `late` steps of each utterance set to zero: they are before its start."""
        if not late:
            return x
        is_before = torch.arange(x.shape[2], device=x.device) < late
        return x.masked_fill((is_before & self.is_start[:, None])[:, None], 0)


class CausalCodec(nn.Module):
    """Base class of codecs of causal layers, whose state is the memory of these layers.

    Subclasses define `samples`, and set `state_size` to the number of elements in the state of an utterance.
    """

    state_size: int

    def samples(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        """Decode codes [B, K, n] to samples [B, m] in [-1, 1]. The last frames are right context.

        Args:
            first: Index of the first frame of each utterance, [B].
        """
        raise NotImplementedError

    def initial_state(self, batch: int) -> Tensor:
        return next(self.parameters()).new_zeros(batch, self.state_size)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        codes = window.codes[:, :, window.left :].to(window.state.device)
        first = window.first.to(window.state.device)
        memory = Memory(window.state, first, codes.shape[2], window.right, window.rows)
        pcm = self.samples(codes, first, memory)
        assert memory.is_complete, "every layer has stored its state"
        return pcm, memory.after


def num_kept(*parts: nn.Module) -> int:
    """Return the number of elements in the state of one utterance that the layers of these modules store."""
    return sum(getattr(layer, "kept", 0) for module in parts for layer in module.modules())


ENCODED_FRAMES = 25  # frames of a recording that are encoded at once, to limit the memory of attention


def encoded_parts(samples: Tensor, hop: int, state: Tensor) -> Iterator[tuple[Tensor, Tensor, Memory]]:
    """Yield a recording in parts of at most ENCODED_FRAMES frames.

    Args:
        samples: Samples of whole frames, [n].
        state: State before the first part, [1, D].

    Yields:
        Samples of a part, the index of its first frame, [1], and the memory, which must be complete before the next
        part.
    """
    for start in range(0, len(samples), ENCODED_FRAMES * hop):
        block = samples[start : start + ENCODED_FRAMES * hop]
        first = torch.tensor([start // hop], device=samples.device)
        memory = Memory(state, first, len(block) // hop)
        yield block, first, memory
        assert memory.is_complete, "every layer has stored its state"
        state = memory.after
