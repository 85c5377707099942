"""What layers have heard last, carried from window to window in one flat state."""

import torch
from torch import Tensor


class Memory:
    """A walk through a state [B, D], layer by layer in the order in which they run, while the next one is written.

    A state of zeros stands for the zeros that a causal convolution is padded with.
    """

    def __init__(self, state: Tensor) -> None:
        self._before = state
        self.after = torch.empty_like(state)
        self._at = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of the next state is written."""
        return self._at == self.after.shape[1]

    def recall(self, x: Tensor, steps: int, time: int = 2) -> Tensor:
        """x [B, …] with the `steps` before it, along its dimension `time`; the last `steps` of both are kept."""
        shape = [*x.shape[:time], steps, *x.shape[time + 1 :]]
        stop = self._at + x[0].numel() // x.shape[time] * steps
        both = torch.cat([self._before[:, self._at : stop].view(shape), x], time)
        self.after[:, self._at : stop].view(shape).copy_(both.narrow(time, both.shape[time] - steps, steps))
        self._at = stop
        return both
