"""Speech tokens to a mel spectrogram.

tokens ─► conformer ─► regulator ─► μ [B, M, T]
noise [M, T] ─► 10 Euler steps along estimator(state, μ, speaker, prompt) ─► mel [B, M, T]
"""

from dataclasses import astuple, dataclass
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.cosyvoice.conformer import EncoderLayer, TokenInput, wave_of_distances
from stretto.codecs.cosyvoice.flow import EncoderShape, Matching
from stretto.codecs.glm4_voice.config import Glm4VoiceConfig


class BlockConformer(nn.Module):
    """Conformer over token vectors: [B, T, E] -> [B, T, H]."""

    def __init__(self, token_width: int, shape: EncoderShape) -> None:
        super().__init__()
        self.embed = TokenInput(token_width, shape.width)
        self.encoders = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.after_norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        distances = wave_of_distances(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for layer in self.encoders:
            x = layer(x, distances)
        return self.after_norm(x)


class LengthRegulator(nn.Module):
    """Length regulator: token vectors [B, T, M], repeated and smoothed -> [B, M, frames]."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        model: list[nn.Module] = []
        for _ in range(layers):
            model += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*model, nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.model(F.interpolate(x.transpose(1, 2).contiguous(), size=frames, mode="nearest"))


@dataclass(frozen=True, slots=True)
class Memory:
    """State of B utterances between two blocks; parts shorter than their capacity are right-aligned.

    Attributes:
        mel: Mel already decoded, [B, M, n].
        overlap: Mel to be faded into the next block, [B, M, o].
        source: Excitation at the end of the decoded part, [B, s].
        pending: Samples of frames that are not complete yet, [B, p].
    """

    mel: Tensor
    overlap: Tensor
    source: Tensor
    pending: Tensor

    def flat(self, room: "Room") -> Tensor:
        """Return the state [B, room.size], with zeros in front of parts shorter than their capacity."""
        parts = [self.mel, self.overlap, self.source, self.pending]
        fitted = [_fitted(part, shape[-1]).flatten(1) for part, shape in zip(parts, room.shapes, strict=True)]
        state = fitted[0].new_empty(len(fitted[0]), room.size)
        for place, part in zip(state.split([each.shape[1] for each in fitted], 1), fitted, strict=True):
            place.copy_(part)
        return state


def _fitted(part: Tensor, length: int) -> Tensor:
    return F.pad(part, (max(0, length - part.shape[-1]), 0))[..., max(0, part.shape[-1] - length) :]


@dataclass(frozen=True, slots=True)
class Room:
    """Capacities of the four parts, without the batch dimension."""

    mel: tuple[int, int]
    overlap: tuple[int, int]
    source: tuple[int]
    pending: tuple[int]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return astuple(self)

    @property
    def size(self) -> int:
        """Numbers in the state of one utterance."""
        return sum(prod(shape) for shape in self.shapes)

    def read(self, state: Tensor) -> Memory:
        """Return the state [B, size] as its four parts."""
        parts = state.split([prod(shape) for shape in self.shapes], 1)
        return Memory(*(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)))


class Flow(nn.Module):
    """Flow with tensors named as in the published `flow.pt`."""

    def __init__(self, config: Glm4VoiceConfig) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(config.codebook_size, config.token_width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mels)
        self.encoder = BlockConformer(config.token_width, config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mels)
        self.length_regulator = LengthRegulator(config.mels, config.regulator)
        self.decoder = Matching(config.mels, config.estimator, config.guidance)

    def goal(self, tokens: Tensor, frames: int) -> Tensor:
        """Return μ [B, M, frames] of tokens [B, T]."""
        return self.length_regulator(self.encoder_proj(self.encoder(self.input_embedding(tokens))), frames)

    def forward(self, tokens: Tensor, noise: Tensor, prompt: Tensor) -> Tensor:
        """Return mel [B, M, frames] of tokens [B, T] from noise [M, frames], continuing the prompt [B, M, n].

        The speaker vector is zero, so only its projection's bias remains.
        """
        goal = self.goal(tokens, noise.shape[1])
        known = nn.functional.pad(prompt, (0, noise.shape[1] - prompt.shape[2]))
        speaker = self.spk_embed_affine_layer.bias[:, None].expand_as(goal)
        return self.decoder(noise.expand_as(goal), goal, speaker, known)
