"""Exact streaming of a SEANet decoder with an LSTM, window by window.

frames      first-left      first              last      last+right
codes           ░░░░░░░░░░░░░██████████████████▒▒▒▒▒▒▒▒▒▒▒▒▒      the window
head               ──────────────────────────────────────         a convolution: `head` frames lost on each side
LSTM                ≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈|≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈          starts at first - tail.left from the carried (h, c)
tail                         ██████████████████                   convolutions: `tail` frames lost on each side

The state precedes frame first - tail.left (frame 0 at the utterance's start), so that the tail gets its left context
again; it is stored at | for the next window. At the true ends the convolutions reflect, and no frame is lost.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.codec.base import Stateful
from stretto.codec.seanet.shape import SeanetShape


@dataclass(frozen=True, slots=True)
class SeanetStream:
    """Three parts of a decoder (mapping [B, C, T] to [B, C', T'], the LSTM [T, B, C]) and its shape."""

    shape: SeanetShape
    head: nn.Module
    lstm: nn.LSTM
    tail: nn.Module

    @property
    def streaming(self) -> Stateful:
        """Context of head and tail in sequence; the head reflects at the start."""
        head, tail = self.shape.head, self.shape.tail
        return Stateful(left=head.left + tail.left, right=head.right + tail.right, start=self.shape.start)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros for (h, c) of every layer: [batch, 2 * layers * channels]."""
        return next(self.lstm.parameters()).new_zeros(batch, 2 * self.lstm.num_layers * self.lstm.hidden_size)

    def __call__(self, latents: Tensor, left: int, right: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples [B, n] of latents [B, C, left + frames + right] without context, and the next state."""
        end = latents.shape[2] - right
        start, keep = (max(0, frame - self.shape.tail.left) for frame in (left, end))
        steps = self.head(latents).permute(2, 0, 1)[start : end + self.shape.tail.right]
        before, state = self._recur(steps[: keep - start], state)
        after, _ = self._recur(steps[keep - start :], state)
        hidden = torch.cat([before, after]) + steps
        pcm = self.tail(hidden.permute(1, 2, 0))[:, 0]
        return pcm[:, (left - start) * self.shape.hop : (end - start) * self.shape.hop], state

    def _recur(self, steps: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if len(steps) == 0:
            return steps, state
        hidden, cell = state.unflatten(1, (2, self.lstm.num_layers, -1)).permute(1, 2, 0, 3).contiguous()
        steps, (hidden, cell) = self.lstm(steps, (hidden, cell))
        return steps, torch.stack([hidden, cell]).permute(2, 0, 1, 3).flatten(1).to(state.dtype)
