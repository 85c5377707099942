"""Decoder of Qwen3-TTS' codec: frames of codes to samples, continuing from a memory.

codes ─► 1 + 15 codebooks ─► conv ─► transformer ─► 2 × (↑2, ConvNeXt) ─► conv ─► 4 × (↑ 8, 5, 4, 3) ─► conv ─► pcm
         12.5 per second     2 back  71 back, 8 times   6 steps back      6 back   78 steps back each       6 back

All layers are causal and keep their own last inputs, so a window is decoded without the frames before it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codec.qwen3_12hz.config import SEMANTIC, DecoderShape
from stretto.codec.qwen3_12hz.layers import KERNEL, Block, ConvNext, Convolution, SnakeBeta, Upsampling, samples_of
from stretto.codec.qwen3_12hz.memory import Memory
from stretto.codec.qwen3_12hz.transformer import Attention, Transformer

FIRST_KERNEL = 3
LEAST_USAGE = 1e-5  # least usage count of a codebook entry


class Codebook(nn.Module):
    """Codebook stored as in training: sums of entries and their usage counts."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.cluster_usage = nn.Parameter(torch.ones(size))
        self.embedding_sum = nn.Parameter(torch.zeros(size, width))

    def forward(self, codes: Tensor) -> Tensor:
        """Return the entries [B, n, C] of codes [B, n]."""
        usage = self.cluster_usage[codes].clamp(min=LEAST_USAGE)
        return F.embedding(codes, self.embedding_sum) / usage[..., None]


class Codebooks(nn.Module):
    """Codebooks whose entries are summed and projected together."""

    def __init__(self, shape: DecoderShape, number: int) -> None:
        super().__init__()
        width = shape.codebook_dim // 2
        self._books = [Codebook(shape.codebook_size, width) for _ in range(number)]
        layers = nn.ModuleList(nn.ModuleDict({"_codebook": book}) for book in self._books)  # matches the tensor names
        self.vq = nn.ModuleDict({"layers": layers})
        self.output_proj = nn.Conv1d(width, shape.codebook_dim, 1, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the latents [B, C, n] of codes [B, K, n] of the first K codebooks."""
        entries = [book(each) for book, each in zip(self._books, codes.unbind(1), strict=False)]
        return self.output_proj(torch.stack(entries).sum(0).transpose(1, 2))


class Quantizer(nn.Module):
    """Semantic codebook and acoustic codebooks."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.rvq_first = Codebooks(shape, SEMANTIC)
        self.rvq_rest = Codebooks(shape, shape.num_quantizers - SEMANTIC)

    def forward(self, codes: Tensor) -> Tensor:
        latents = self.rvq_first(codes[:, :SEMANTIC])
        return latents + self.rvq_rest(codes[:, SEMANTIC:]) if codes.shape[1] > SEMANTIC else latents


class Decoder(nn.Module):
    """Decoder: codes to samples."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.quantizer = Quantizer(shape)
        self.pre_conv = Convolution(shape.codebook_dim, shape.latent_dim, FIRST_KERNEL)
        self.pre_transformer = Transformer(shape)
        self.upsample = nn.ModuleList(
            nn.ModuleList([Upsampling(shape.latent_dim, shape.latent_dim, ratio, ratio), ConvNext(shape.latent_dim)])
            for ratio in shape.upsampling_ratios
        )
        channels = shape.decoder_dim
        layers: list[nn.Module] = [Convolution(shape.latent_dim, channels, KERNEL)]
        for rate in shape.upsample_rates:
            layers.append(Block(channels, rate))
            channels //= 2
        self.decoder = nn.ModuleList([*layers, SnakeBeta(channels), Convolution(channels, 1, KERNEL)])

    @property
    def num_kept(self) -> int:
        """Numbers in the memory of one utterance."""
        return sum(each.kept for each in self.modules() if isinstance(each, Convolution | Upsampling | Attention))

    def forward(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        """Return samples [B, n · hop] of codes [B, K, n] that begin at frames first [B]."""
        latents = self.pre_conv(self.quantizer(codes), memory).transpose(1, 2)
        x = self.pre_transformer(latents, first, memory).transpose(1, 2)
        return samples_of(x, memory, self.upsample, self.decoder)
