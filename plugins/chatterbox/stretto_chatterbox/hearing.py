"""S3 tokenizer v2, which encodes a voice recording for S3Gen as tokens at 25 Hz.

Modules are named as those of `tokenizer` in the published `s3gen.safetensors`. Reference:
https://github.com/xingchensong/S3Tokenizer (Apache-2.0).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.encoders.voice_spectra import TOKEN_MELS, token_mel

NUM_TOKENS = 3**8
# attention head width, FSMN kernel size, rotary base
HEAD_WIDTH = 64
MEMORY = 31
THETA = 10_000.0
FRAMES_PER_TOKEN = 4  # log-mel frames
FSQ_SCALE = 0.9990000128746033


class _MemoryAttention(nn.Module):
    """Attention with rotary positions plus a depthwise convolution over the values (FSMN), [B, T, H]."""

    def __init__(self, width: int):
        super().__init__()
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.fsmn_block = nn.Conv1d(width, width, MEMORY, padding=MEMORY // 2, groups=width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def heads(rows: Tensor) -> Tensor:
            return rows.unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2)

        def rotated(rows: Tensor) -> Tensor:
            first, second = rows.chunk(2, -1)
            return rows * cos + torch.cat([-second, first], -1) * sin

        value = self.value(x)
        memory = value + self.fsmn_block(value.transpose(1, 2)).transpose(1, 2)
        query = rotated(heads(self.query(x)))
        key = rotated(heads(self.key(x)))
        attended = F.scaled_dot_product_attention(query, key, heads(value))
        return self.out(attended.transpose(1, 2).flatten(2)) + memory


class _TokenizerLayer(nn.Module):
    """Pre-norm layer of attention and a feed-forward network, [B, T, H]."""

    def __init__(self, width: int):
        super().__init__()
        self.attn_ln = nn.LayerNorm(width)
        self.mlp_ln = nn.LayerNorm(width)
        self.attn = _MemoryAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x), cos, sin)
        return x + self.mlp(self.mlp_ln(x))


class S3Tokenizer(nn.Module):
    """S3 tokenizer v2 for recordings of at most 30 s. `width` is a multiple of 64."""

    def __init__(self, width: int, num_layers: int):
        super().__init__()
        parts: dict[str, nn.Module] = {
            "conv1": nn.Conv1d(TOKEN_MELS, width, 3, stride=2, padding=1),
            "conv2": nn.Conv1d(width, width, 3, stride=2, padding=1),
            "blocks": nn.ModuleList(_TokenizerLayer(width) for _ in range(num_layers)),
        }
        self.encoder = nn.ModuleDict(parts)
        self.quantizer = nn.ModuleDict({"_codebook": nn.ModuleDict({"project_down": nn.Linear(width, 8)})})

    def encode(self, pcm: Tensor, most: int | None = None) -> Tensor:
        """Return the tokens of a recording, int64 [ceil(n // 160 / 4)], or only the first `most`.

        Args:
            pcm: float32 [n] at 16 kHz. Mel values are clipped relative to the loudest frame of the recording.
        """
        mel = token_mel(pcm)
        x = mel[None, :, : None if most is None else FRAMES_PER_TOKEN * most]
        x = F.gelu(self.encoder["conv2"](F.gelu(self.encoder["conv1"](x)))).transpose(1, 2)
        rates = THETA ** -(torch.arange(0, HEAD_WIDTH, 2, device=pcm.device) / HEAD_WIDTH)
        angles = torch.outer(torch.arange(x.shape[1], device=pcm.device).float(), rates).repeat(1, 2)
        cos = angles.cos()
        sin = angles.sin()
        for layer in self.encoder["blocks"].children():
            x = layer(x, cos, sin)
        low = self.quantizer.get_submodule("_codebook.project_down")(x[0])
        digits = (low.tanh() * FSQ_SCALE).round().long() + 1
        return (digits * 3 ** torch.arange(8, device=pcm.device)).sum(1)
