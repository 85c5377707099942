"""What layers have heard last, carried from window to window in one flat state."""

import torch
from torch import Tensor


class Memory:
    """A walk through a state [B, D], layer by layer in the order in which they run, while the next one is written.

    A state of zeros stands for the zeros that a causal convolution is padded with. first [B]: where the window begins,
    in frames. right: how many of its `frames` are there for those before them: the next window has them again.
    """

    def __init__(self, state: Tensor, first: Tensor, frames: int, right: int = 0) -> None:
        self._before, self._is_start = state, first == 0
        self._frames, self._right = frames, right
        self.after = torch.empty_like(state)
        self._at = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of the next state is written."""
        return self._at == self.after.shape[1]

    def recall(self, x: Tensor, steps: int, time: int = 2) -> Tensor:
        """x [B, …] with the `steps` before it, along its dimension `time`; the last `steps` of both are kept, but for
        what the next window has again."""
        shape = [*x.shape[:time], steps, *x.shape[time + 1 :]]
        stop = self._at + x[0].numel() // x.shape[time] * steps
        both = torch.cat([self._before[:, self._at : stop].view(shape), x], time)
        again = x.shape[time] * self._right // self._frames
        kept = both.narrow(time, both.shape[time] - again - steps, steps)
        self.after[:, self._at : stop].view(shape).copy_(kept)
        self._at = stop
        return both

    def begun(self, x: Tensor, late: int) -> Tensor:
        """x [B, C, n] without the first `late` steps of an utterance, which are heard as if there were none."""
        if not late:
            return x
        is_before = torch.arange(x.shape[2], device=x.device) < late
        return x.masked_fill((is_before & self._is_start[:, None])[:, None], 0)
