"""Exact streaming of a SEANet decoder with an LSTM, window by window. It knows neither codes nor checkpoints.

frames      first-left      first              last      last+right
codes           ░░░░░░░░░░░░░██████████████████▒▒▒▒▒▒▒▒▒▒▒▒▒      the window
head               ──────────────────────────────────────         a convolution: `head` frames lost on each side
LSTM                ≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈|≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈≈          starts at first - tail.left from the carried (h, c)
tail                         ██████████████████                   convolutions: `tail` frames lost on each side

The state stands before frame first - tail.left (frame 0 at the utterance's start), so that the tail hears its left
context again; at | it is kept for the next window. Nothing is lost at the true ends, where the convolutions mirror.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.codec.base import Stateful
from stretto.codec.seanet.shape import SeanetShape


@dataclass(frozen=True, slots=True)
class SeanetStream:
    """The three parts of a decoder (they map [B, C, T] to [B, C', T'], the LSTM [T, B, C]) and its shape."""

    shape: SeanetShape
    head: nn.Module
    lstm: nn.LSTM
    tail: nn.Module

    @property
    def streaming(self) -> Stateful:
        """Context of the head and of the tail, which read one after the other; the head mirrors the start."""
        head, tail = self.shape.head, self.shape.tail
        return Stateful(left=head.left + tail.left, right=head.right + tail.right, start=self.shape.start)

    def initial_state(self, batch: int) -> Tensor:
        """(h, c) of every layer, zero: [batch, 2 * layers * channels]."""
        return next(self.lstm.parameters()).new_zeros(batch, 2 * self.lstm.num_layers * self.lstm.hidden_size)

    def __call__(self, latents: Tensor, left: int, right: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Pcm [B, n] of latents [B, C, left + frames + right] less both contexts, and the next window's state."""
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
