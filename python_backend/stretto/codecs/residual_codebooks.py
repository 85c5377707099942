"""Residual quantiser whose codebooks have projections, and a table of all its codebooks for a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs import device
from stretto.codecs.kernels.operators import runs_kernels


@dataclass(frozen=True, slots=True)
class QuantizerConfig:
    """Hyperparameters of the quantiser, under their published names."""

    input_dim: int
    rvq_dim: int
    output_dim: int
    num_quantizers: int
    codebook_size: int
    codebook_dim: int


class Codebook(nn.Module):
    """Codebook with projections from and to the quantiser's width."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.rvq_dim, config.codebook_dim)
        self.out_proj = nn.Linear(config.codebook_dim, config.rvq_dim)
        self.codebook = nn.Embedding(config.codebook_size, config.codebook_dim)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of x [B, T, D], the entries with the largest cosine similarity, [B, T]."""
        return (F.normalize(self.in_proj(x), dim=-1) @ F.normalize(self.codebook.weight, dim=-1).T).argmax(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors [B, T, D] of codes [B, T]."""
        return self.out_proj(self.codebook(codes))


class Quantizer(nn.Module):
    """Residual quantiser: each codebook encodes the error that the earlier ones leave."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        wide = config.input_dim
        narrow = config.rvq_dim
        out = config.output_dim
        self.input_proj = nn.Identity() if wide == narrow else nn.Linear(wide, narrow)
        self.output_proj = nn.Identity() if out == narrow else nn.Linear(narrow, out)
        self._last_code = config.codebook_size - 1
        self.quantizers: Any = nn.ModuleList(Codebook(config) for _ in range(config.num_quantizers))
        self._joined: device.JointCodebooks | None = None  # last result of `joined_codebooks`

    def encode(self, x: Tensor, num_codebooks: int) -> Tensor:
        """Encode x [B, T, D] to codes [B, K, T]."""
        rest = self.input_proj(x)
        codes = []
        for codebook in self.quantizers[:num_codebooks]:
            codes.append(codebook.encode(rest))
            rest = rest - codebook.decode(codes[-1])
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the sum [B, T, D] of the vectors of codes [B, K, T]."""
        if runs_kernels(self.quantizers[0].codebook.weight):
            self._joined = joined_codebooks(self.quantizers, self._joined)
            return projected(self._joined.sum_of(codes, self._last_code), self.output_proj)
        vectors = (codebook.decode(codes[:, k]) for k, codebook in enumerate(self.quantizers[: codes.shape[1]]))
        return self.output_proj(sum(vectors, torch.zeros((), device=codes.device)))


def joined_codebooks(books: Sequence[Codebook], joined: device.JointCodebooks | None) -> device.JointCodebooks:
    """Return all codebooks as one table on their device; `joined` is the last result, or None."""
    weight = books[0].codebook.weight
    if joined is not None and joined.entries.device == weight.device:
        return joined
    return device.joint_codebooks([book.codebook.weight for book in books], [book.out_proj for book in books])


def projected(x: Tensor, layer: nn.Module) -> Tensor:
    """Return the outputs of a projection on a GPU, or x if there is none."""
    return device.multiply(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else x
