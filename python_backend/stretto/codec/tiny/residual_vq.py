"""Residual vector quantiser of stacked log-mel frames.

A codec frame is FRAMES_PER_CODE concatenated mel frames, projected on `basis` (their principal components). Each
codebook in turn quantises the residual of the previous ones.
"""

import torch
from torch import Tensor, nn


class ResidualVQ(nn.Module):
    """Tables: mean [M], basis [M, D], codebooks [K, V, D], where M is the width of the stacked mel frames.

    `decode` computes in float64, because the pitch derived from its result is integrated over the whole utterance.
    """

    mean: Tensor
    basis: Tensor
    codebooks: Tensor

    def __init__(self, width: int, rank: int, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, rank))
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, rank))

    def encode(self, stacked: Tensor) -> Tensor:
        """Return codes, int64 [T, K], of stacked mel frames [T, M], each codebook's nearest vector in turn."""
        residual = (stacked - self.mean) @ self.basis
        codes = []
        for codebook in self.codebooks:
            distance = codebook.square().sum(1) - 2 * residual @ codebook.T
            nearest = distance.argmin(1)
            residual = residual - codebook[nearest]
            codes.append(nearest)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return stacked mel frames, float64 [B, T, M], of codes [B, K, T]; K may omit the last codebooks."""
        books = torch.arange(codes.shape[1], device=codes.device)
        vectors = self.codebooks[books[:, None], codes].double().sum(1)
        return vectors @ self.basis.double().T + self.mean.double()
