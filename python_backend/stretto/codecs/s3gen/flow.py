"""Speech tokens to a mel spectrogram with twice as many frames, in a given voice.

tokens ─► look-ahead ─► conformer ─► ×2 ─► conformer ─► μ [B, M, T]
noise [M, T] ─► 10 Euler steps along estimator(state, μ, speaker, prompt) ─► mel [B, M, T]

Modules and tensors are named as in the published checkpoint (https://github.com/resemble-ai/chatterbox, `models/s3gen`,
MIT, in parts Apache-2.0).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.cosyvoice.conformer import EncoderLayer, TokenInput, wave_of_distances
from stretto.codecs.cosyvoice.flow import Matching
from stretto.codecs.s3gen.config import FRAMES_PER_TOKEN, GUIDANCE, S3GenConfig

AHEAD = 3  # tokens


class LookAhead(nn.Module):
    """Convolution over a token and later ones, then a causal convolution, with a residual path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, AHEAD + 1)
        self.conv2 = nn.Conv1d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x [B, T, H]."""
        ahead = F.leaky_relu(self.conv1(F.pad(x.transpose(1, 2), (0, AHEAD))))
        return x + self.conv2(F.pad(ahead, (2, 0))).transpose(1, 2)


class Doubling(nn.Module):
    """Repetition of each token, followed by a causal convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2 * FRAMES_PER_TOKEN + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, T, H] as [B, 2 T, H]."""
        frames = x.transpose(1, 2).repeat_interleave(FRAMES_PER_TOKEN, 2)
        return self.conv(F.pad(frames, (2 * FRAMES_PER_TOKEN, 0))).transpose(1, 2)


class UpsampleConformer(nn.Module):
    """Conformer with full attention: token vectors [B, T, H] to [B, 2 T, H]."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        shape, width = config.encoder, config.encoder.width
        self.embed = TokenInput(width, width)
        self.pre_lookahead_layer = LookAhead(width)
        self.encoders = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.up_layer = Doubling(width)
        self.up_embed = TokenInput(width, width)
        self.up_encoders = nn.ModuleList(EncoderLayer(shape) for _ in range(config.up_layers))
        self.after_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self._through(self.encoders, self.pre_lookahead_layer(self.embed(x)))
        x = self._through(self.up_encoders, self.up_embed(self.up_layer(x)))
        return self.after_norm(x)

    def _through(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        distances = wave_of_distances(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for layer in layers:
            x = layer(x, distances)
        return x


class Flow(nn.Module):
    """Flow with tensors named as under `flow.` in the published file."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(config.codebook_size, config.encoder.width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mels)
        self.encoder = UpsampleConformer(config)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mels)
        self.decoder = Matching(config.mels, config.estimator, GUIDANCE)

    def goal(self, tokens: Tensor) -> Tensor:
        """Return μ [B, M, 2 T] of tokens [B, T]."""
        return self.encoder_proj(self.encoder(self.input_embedding(tokens))).transpose(1, 2)

    def forward(self, tokens: Tensor, noise: Tensor, prompt: Tensor, speaker: Tensor) -> Tensor:
        """Return mel [B, M, 2 T] of tokens [B, T] from noise [M, 2 T].

        It continues the prompt [B, M, n] in the voice of the x-vector [B, E].
        """
        goal = self.goal(tokens)
        known = F.pad(prompt, (0, goal.shape[2] - prompt.shape[2]))
        sound = self.spk_embed_affine_layer(F.normalize(speaker, dim=1))[..., None].expand_as(goal)
        return self.decoder(noise.expand_as(goal), goal, sound, known)
