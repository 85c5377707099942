"""Receptive field of a SEANet decoder, computed from the numbers of its config.

z ─► head: conv ─► (LSTM or transformer) ─► tail: [convT ↑ratio, residual blocks] × ratios, conv ─► pcm
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Context:
    """Input frames that an output frame depends on: `left` before it and `right` after it."""

    left: int
    right: int


@dataclass(frozen=True, slots=True)
class SeanetShape:
    """Numbers that define a SEANet decoder's receptive field; `ratios` are its upsampling factors in order."""

    ratios: tuple[int, ...]
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    num_residual_layers: int = 1
    dilation_base: int = 2
    is_causal: bool = False

    @property
    def hop(self) -> int:
        """Samples per input frame."""
        return math.prod(self.ratios)

    @property
    def head(self) -> Context:
        """Context of the first convolution."""
        return self._of_convolution(self.kernel, 1)

    @property
    def start(self) -> int:
        """Number of frames that the head's reflection at the true start depends on."""
        return self.head.left + 1

    @property
    def tail(self) -> Context:
        """Context of all layers after the recurrence, in input frames, followed from the samples of frame 0 upwards.

        Sample u of a transposed convolution (kernel 2 s, stride s, `trim` samples cut on its left) depends on the
        inputs j with j s ≤ u + trim ≤ j s + 2 s - 1.
        """
        first, last = self._before(self.last_kernel, 1, 0, self.hop - 1)
        for ratio in reversed(self.ratios):
            for layer in reversed(range(self.num_residual_layers)):
                first, last = self._before(self.residual_kernel, self.dilation_base**layer, first, last)
            trim = 0 if self.is_causal else ratio - ratio // 2
            first, last = -((2 * ratio - 1 - first - trim) // ratio), (last + trim) // ratio
        return Context(left=-first, right=last)

    def _of_convolution(self, kernel: int, dilation: int) -> Context:
        span = (kernel - 1) * dilation
        right = 0 if self.is_causal else span // 2
        return Context(left=span - right, right=right)

    def _before(self, kernel: int, dilation: int, first: int, last: int) -> tuple[int, int]:
        reach = self._of_convolution(kernel, dilation)
        return first - reach.left, last + reach.right
