"""Snake activation: x + sin(a x)² / a (Ziyin et al. 2020, https://arxiv.org/abs/2006.08195)."""

from torch import Tensor, nn


class Snake(nn.Module):
    """Snake with a = 1 and no parameters, as in ESPnet's codecs."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.sin().square()
