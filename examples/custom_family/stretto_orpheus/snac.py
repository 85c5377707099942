"""Codec `snac`: SNAC at 24 kHz (Siuzdak et al., 2024), with one, two and four codes per frame on its three levels.

    frame        0                 1
    level 0      c0                …        repeated 4 times
    level 1      c1      c4                 repeated twice
    level 2      c2  c3  c5  c6             ─► 4 latents of 512 samples

The seven codes of a frame serve as the codebooks of this codec, in the order that Orpheus generates them. The decoder
is convolutional, so windows with three frames of context on either side equal a one-shot decode of the utterance. Its
noise blocks multiply by Gaussian noise, which the authors' code draws anew in each call. Here, it is a function of the
position in the utterance, so that equal codes give equal samples for chunks of any size.

A published folder (https://huggingface.co/hubertsiuzdak/snac_24khz) has `config.json` and `pytorch_model.bin`.
"""

from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Window, Windowed
from stretto.codecs.streaming import WindowedCodec, context, dac_layers
from stretto.errors import CheckpointError
from stretto.untrusted_files import json_object, released_file
from stretto.weights.loading import codec_directory, load_strictly, read_tensors

WEIGHTS = "pytorch_model.bin"
LEVEL_OF_PLACE = (0, 1, 2, 2, 1, 2, 2)  # level of each of a frame's seven codes
STRIDES = (4, 2, 1)  # latents per code, by level
LATENTS = 4  # latents per frame
NOISE_FRAMES = 512  # period of the noise: 43 s
NOISE_SEED = 45
ENCODER = ("encoder.", *(f"quantizer.quantizers.{level}.in_proj." for level in range(len(STRIDES))))
DIRECTION = ".parametrizations.weight.original1"
LENGTH = ".parametrizations.weight.original0"


@dataclass(frozen=True)
class SnacConfig:
    """Hyperparameters of SNAC's decoder, named as in config.json."""

    sampling_rate: int
    encoder_dim: int
    encoder_rates: tuple[int, ...]
    decoder_dim: int
    decoder_rates: tuple[int, ...]
    codebook_size: int
    codebook_dim: int

    @property
    def latent_dim(self) -> int:
        return self.encoder_dim * 2 ** len(self.encoder_rates)

    @property
    def samples_per_latent(self) -> int:
        return prod(self.decoder_rates)


def read_config(folder: Path) -> SnacConfig:
    """Read the hyperparameters from a published folder's config.json.

    Raises:
        CheckpointError: This is not the config of the 24 kHz model. The models at 32 and 44 kHz have attention, which
            does not stream, and a different number of levels.
    """
    path = folder / "config.json"
    record = json_object(path)
    expected = {"attn_window_size": None, "vq_strides": list(STRIDES), "noise": True, "depthwise": True}
    for name, value in expected.items():
        if name not in record or record[name] != value:
            raise CheckpointError(f"{path}: {name}: expected {value}, as in SNAC at 24 kHz, got {record.get(name)!r}")
    numbers: dict[str, Any] = {}
    for name in SnacConfig.__annotations__:
        value = record.get(name)
        numbers[name] = tuple(value) if isinstance(value, list) else value
        many = numbers[name] if name.endswith("_rates") else (value,)
        if (
            not isinstance(many, tuple)
            or not many
            or not all(type(each) is int and 0 < each < 1 << 17 for each in many)
        ):
            raise CheckpointError(f"{path}: {name}: expected positive integers, got {value!r}")
    return SnacConfig(**numbers)


class Snake(nn.Module):
    """Snake activation with one frequency per channel: x + sin(a x)² / a."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha * x).sin().square() / (self.alpha + 1e-9)


class Noise(nn.Module):
    """Multiplicative noise: x + noise * W x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + noise * self.linear(x)


class Residual(nn.Module):
    """Residual unit with a depthwise convolution."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        depthwise = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation, groups=channels)
        self.block = nn.Sequential(Snake(channels), depthwise, Snake(channels), nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Block(nn.Module):
    """Upsampling by `stride`, noise, and three residual units."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        padding = ceil(stride / 2)
        half = channels // 2
        upsample = nn.ConvTranspose1d(channels, half, 2 * stride, stride, padding, output_padding=stride % 2)
        residual = [Residual(half, dilation) for dilation in (1, 3, 9)]
        self.block = nn.ModuleList([Snake(channels), upsample, Noise(half), *residual])

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        snake, upsample, noisy, *residual = self.block
        x = noisy(upsample(snake(x)), noise)
        for unit in residual:
            x = unit(x)
        return x


class Decoder(nn.Module):
    """Decoder from latents [B, D, T] to samples [B, T * samples_per_latent].

    `noise` has a tensor [B, 1, n] for each block.
    """

    def __init__(self, config: SnacConfig) -> None:
        super().__init__()
        latent = config.latent_dim
        width = config.decoder_dim
        layers: list[nn.Module] = [nn.Conv1d(latent, latent, 7, padding=3, groups=latent), nn.Conv1d(latent, width, 1)]
        for stride in config.decoder_rates:
            layers.append(Block(width, stride))
            width //= 2
        self.model = nn.ModuleList([*layers, Snake(width), nn.Conv1d(width, 1, 7, padding=3)])

    def forward(self, x: Tensor, noise: list[Tensor]) -> Tensor:
        depthwise, widen, *blocks, snake, last = self.model
        x = widen(depthwise(x))
        for block, each in zip(blocks, noise, strict=True):
            x = block(x, each)
        return last(snake(x)).tanh()[:, 0]


class Level(nn.Module):
    """Codebook of a level, with its projection to the latents."""

    def __init__(self, config: SnacConfig) -> None:
        super().__init__()
        self.codebook = nn.Embedding(config.codebook_size, config.codebook_dim)
        self.out_proj = nn.Conv1d(config.codebook_dim, config.latent_dim, 1)


class Levels(nn.Module):
    """Sum of the latents of the three levels."""

    def __init__(self, config: SnacConfig) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(Level(config) for _ in STRIDES)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the latents [B, D, 4 T] of codes [B, 7, T]."""
        latents: Tensor | None = None
        for index, (level, stride) in enumerate(zip(self.quantizers, STRIDES, strict=True)):
            places = [place for place, own in enumerate(LEVEL_OF_PLACE) if own == index]
            own = codes[:, places].transpose(1, 2).flatten(1)  # in order of time
            vectors = level.out_proj(level.codebook(own).transpose(1, 2)).repeat_interleave(stride, dim=2)
            latents = vectors if latents is None else latents + vectors
        assert latents is not None
        return latents


class SnacCodec(WindowedCodec):
    """SNAC decoder; encoding is not implemented."""

    noise: Tensor

    def __init__(self, config: SnacConfig) -> None:
        layers = dac_layers(config.decoder_rates, output_padding=True)
        left, right = (ceil(latents / LATENTS) for latents in context(layers))
        spec = CodecSpec(
            name="snac",
            sample_rate=config.sampling_rate,
            samples_per_frame=LATENTS * config.samples_per_latent,
            num_codebooks=len(LEVEL_OF_PLACE),
            codebook_size=config.codebook_size,
            streaming=Windowed(left, right),
        )
        super().__init__(spec, can_encode=False)
        self.quantizer = Levels(config)
        self.decoder = Decoder(config)
        self.steps = [LATENTS * prod(config.decoder_rates[: depth + 1]) for depth in range(len(config.decoder_rates))]
        table = np.random.default_rng(NOISE_SEED).standard_normal(NOISE_FRAMES * sum(self.steps), dtype=np.float32)
        self.register_buffer("noise", torch.from_numpy(table), persistent=False)

    def noise_at(self, first: Tensor, num_frames: int) -> list[Tensor]:
        """Return each block's noise [B, 1, n] for `num_frames` frames, starting at frame `first` [B]."""
        found = []
        for table, steps in zip(
            self.noise.split([NOISE_FRAMES * steps for steps in self.steps]), self.steps, strict=True
        ):
            places = first.to(table.device)[:, None] * steps + torch.arange(num_frames * steps, device=table.device)
            found.append(table[places % len(table)][:, None])
        return found

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode a window's frames to a waveform [B, n] in [-1, 1]. The state is empty."""
        codes = window.codes.to(self.device)
        step = self.spec.samples_per_frame
        noise = self.noise_at(window.first - window.left, codes.shape[2])
        pcm = self.decoder(self.quantizer(codes), noise)
        return pcm[:, window.left * step : pcm.shape[1] - window.right * step], window.state


def published_shape(folder: Path) -> tuple[int, int]:
    """Return the number of codebooks and the codebook size of the codec published in `folder`."""
    return len(LEVEL_OF_PLACE), read_config(folder).codebook_size


def plain_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the decoder's tensors with weight norms multiplied out, excluding encoder tensors."""
    plain = {}
    for name, tensor in tensors.items():
        if name.startswith(ENCODER) or name.endswith(LENGTH):
            continue
        base = name.removesuffix(DIRECTION)
        length = tensors.get(base + LENGTH)
        if base != name and length is not None and tensor.ndim == length.ndim == 3:
            norm = tensor.flatten(1).norm(dim=1)[:, None, None]
            plain[f"{base}.weight"] = tensor * (length / norm)
        else:
            plain[name] = tensor
    return plain


def load(directory: Path, device: str = "cpu") -> SnacCodec:
    """Load the codec from a published folder; raise CheckpointError if tensors do not match."""
    folder = codec_directory(directory)
    codec = SnacCodec(read_config(folder))
    load_strictly(codec, plain_weights(read_tensors(released_file(folder, WEIGHTS))), folder)
    return codec.eval().requires_grad_(False).to(device)
