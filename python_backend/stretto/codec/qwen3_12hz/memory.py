"""Last inputs of the layers, carried from window to window in one flat state."""

import torch
from torch import Tensor


class Memory:
    """Sequential reader of a state [B, D] and writer of the next one, layer by layer in execution order.

    A zero state equals the zero padding of a causal convolution.

    Args:
        state: State before the window, [B, D].
        first: First frame of the window, [B].
        frames: Number of frames in the window, right context included.
        right: Number of right-context frames, which the next window contains again.
    """

    def __init__(self, state: Tensor, first: Tensor, frames: int, right: int = 0) -> None:
        self._before, self._is_start = state, first == 0
        self._frames, self._right = frames, right
        self.after = torch.empty_like(state)
        self._at = 0

    @property
    def is_complete(self) -> bool:
        """True if the whole next state has been written."""
        return self._at == self.after.shape[1]

    def recall(self, x: Tensor, steps: int, time: int = 2) -> Tensor:
        """Return x [B, …] preceded by its last `steps` inputs along dimension `time`, and store the newest ones.

        Steps that the next window contains again are not stored.
        """
        shape = [*x.shape[:time], steps, *x.shape[time + 1 :]]
        stop = self._at + x[0].numel() // x.shape[time] * steps
        both = torch.cat([self._before[:, self._at : stop].view(shape), x], time)
        again = x.shape[time] * self._right // self._frames
        kept = both.narrow(time, both.shape[time] - again - steps, steps)
        self.after[:, self._at : stop].view(shape).copy_(kept)
        self._at = stop
        return both

    def begun(self, x: Tensor, late: int) -> Tensor:
        """Return x [B, C, n] with the first `late` steps of an utterance masked as non-existent."""
        if not late:
            return x
        is_before = torch.arange(x.shape[2], device=x.device) < late
        return x.masked_fill((is_before & self._is_start[:, None])[:, None], 0)
