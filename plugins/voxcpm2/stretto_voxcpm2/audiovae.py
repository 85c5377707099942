"""`audiovae`: the VoxCPM2 codec (16 kHz input, 48 kHz output), exact for chunks of any size.

4 latents ─► conv ─► 6 × (scale, ↑ 8, 6, 5, 2, 2, 2, 3 residual units) ─► conv ─► pcm
6.25 rows/s    6 back     1 back      6, 18 and 54 back                  6 back

A frame is a patch of latents, laid out like a row of the language model: word p * D + d is element d of latent p. All
layers are causal and store their last inputs ("back" in the diagram) in the state. The converter folds weight norms
into the weights. Before each block, a scale and an offset condition the decoder on the output sample rate. The encoder
returns the mean of its output distribution.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs import streaming
from stretto.codecs.base import CodecSpec, Stateful
from stretto.codecs.causal import (
    DILATIONS,
    KERNEL,
    Convolution,
    Link,
    Upsampling,
    channel_snake,
    residual_links,
    run,
    run_links,
)
from stretto.codecs.device import StatePart
from stretto.codecs.kernels.operators import runs_kernels
from stretto.codecs.memory import CausalCodec, Memory, num_kept
from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import CONFIG_FILE, codec_directory, load_strictly, read_tensors

MODEL_TYPE = "audiovae"
MEAN_KERNEL = 3
# Settings for which only one value is supported, and the default values of all settings in the published code.
SERVED = {"depthwise": True, "use_noise_block": False, "cond_type": "scale_bias", "cond_out_layer": False}
DEFAULTS: dict[str, Any] = SERVED | {
    "encoder_dim": 128,
    "encoder_rates": [2, 5, 8, 8],
    "latent_dim": 64,
    "decoder_dim": 2048,
    "decoder_rates": [8, 6, 5, 2, 2, 2],
    "sample_rate": 16000,
    "out_sample_rate": 48000,
    "sr_bin_boundaries": [20000, 30000, 40000],
}


@dataclass(frozen=True, slots=True)
class AudioVaeConfig:
    """Codec hyperparameters of a release.

    Attributes:
        encoder_channels: Channels of the encoder's first layer, doubled by each block.
        encoder_rates: Strides of the encoder's blocks.
        decoder_channels: Channels of the decoder's first block, halved by each block.
        decoder_rates: Upsampling rates of the decoder's blocks.
        input_rate: Sample rate of recordings in Hz.
        sample_rate: Sample rate of the output in Hz.
        boundaries: Sample rates, in Hz, that separate the bins on which the decoder is conditioned.
    """

    num_latents: int
    num_numbers: int
    encoder_channels: int
    encoder_rates: tuple[int, ...]
    decoder_channels: int
    decoder_rates: tuple[int, ...]
    input_rate: int
    sample_rate: int
    boundaries: tuple[int, ...]

    @classmethod
    def from_record(cls, vae: Mapping[str, Any], num_latents: int) -> "AudioVaeConfig":
        """Return the sizes in `audio_vae_config`, `num_latents` per patch; raise CheckpointError if unsupported."""
        vae = DEFAULTS | dict(vae)
        odd = {name: vae[name] for name, value in SERVED.items() if vae[name] != value}
        if odd:
            expected = {name: SERVED[name] for name in odd}
            raise CheckpointError(f"audio_vae_config: expected {expected}, got {odd}")
        try:
            config = cls(
                num_latents=num_latents,
                num_numbers=vae["latent_dim"],
                encoder_channels=vae["encoder_dim"],
                encoder_rates=tuple(vae["encoder_rates"]),
                decoder_channels=vae["decoder_dim"],
                decoder_rates=tuple(vae["decoder_rates"]),
                input_rate=vae["sample_rate"],
                sample_rate=vae["out_sample_rate"],
                boundaries=tuple(vae["sr_bin_boundaries"]),
            )
            channels = config.decoder_channels
            factor = 1 << len(config.decoder_rates)
            if channels % factor or min(config.encoder_rates + config.decoder_rates) < 2:
                raise ValueError(f"expected rates >= 2 and channels in multiples of {factor}, got {channels} channels")
            if config.input_rate * config.samples_per_patch != config.sample_rate * config.input_samples_per_patch:
                raise ValueError("encoder and decoder must have the same number of latents per second")
        except (*UNPARSABLE, TypeError) as error:
            raise CheckpointError(f"audio_vae_config: cannot be read as an AudioVAE: {error!r}") from error
        return config

    @property
    def num_words(self) -> int:
        return self.num_latents * self.num_numbers

    @property
    def samples_per_patch(self) -> int:
        return self.num_latents * prod(self.decoder_rates)

    @property
    def input_samples_per_patch(self) -> int:
        return self.num_latents * prod(self.encoder_rates)


class WholeSignal:
    """Replacement for `Memory` when a whole signal is processed in one pass, with zeros before it."""

    def part(self, size: int, num_new: int, late: int = 0) -> StatePart:
        return StatePart(None, None, 0, None)

    def masked_start(self, x: Tensor, late: int) -> Tensor:
        return x

    def recall(self, x: Tensor, steps: int, time: int = 2, activation: nn.Module | None = None) -> Tensor:
        """Return x [B, C, n], or its activation, preceded by `steps` zeros."""
        return F.pad(x if activation is None else activation(x), (steps, 0))


class ResidualUnit(nn.Module):
    """Snake, dilated depthwise convolution, Snake, pointwise convolution, with a residual connection."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.act1 = channel_snake(channels)
        self.act2 = channel_snake(channels)
        self.conv1 = Convolution(channels, channels, KERNEL, dilation, groups=channels)
        self.conv2 = Convolution(channels, channels, 1)

    def forward(self, x: Tensor, past: Any) -> Tensor:
        if runs_kernels(x):
            return run_links(list(self.links()), x, past)
        return x + self.conv2(self.act2(self.conv1(self.act1(x), past)), past)

    def links(self) -> Iterator[Link]:
        return residual_links([self.act1, self.conv1, self.act2, self.conv2])


class EncoderBlock(nn.Module):
    """Residual units, followed by a strided convolution that doubles the channels."""

    def __init__(self, channels: int, rate: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(ResidualUnit(channels, dilation) for dilation in DILATIONS)
        self.act = channel_snake(channels)
        self.rate = rate
        self.down = nn.Conv1d(channels, 2 * channels, 2 * rate, rate)

    def forward(self, x: Tensor, past: WholeSignal) -> Tensor:
        for unit in self.units:
            x = unit(x, past)
        return self.down(past.recall(self.act(x), self.rate))


class Encoder(nn.Module):
    """Encoder that converts the samples of a whole recording to latents."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        channels = [config.encoder_channels << index for index in range(1 + len(config.encoder_rates))]
        self.enter = Convolution(1, channels[0], KERNEL)
        pairs = zip(channels[:-1], config.encoder_rates, strict=True)
        self.blocks = nn.ModuleList(EncoderBlock(*pair) for pair in pairs)
        self.mean = Convolution(channels[-1], config.num_numbers, MEAN_KERNEL)

    def forward(self, pcm: Tensor) -> Tensor:
        """Encode samples [B, 1, n * rates] to latents [B, D, n]."""
        past: Any = WholeSignal()
        x = self.enter(pcm, past)
        for block in self.blocks:
            x = block(x, past)
        return self.mean(x, past)


class DecoderBlock(nn.Module):
    """Scale and offset for the output sample rate, upsampling that halves the channels, then residual units."""

    def __init__(self, channels: int, rate: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))
        self.act = channel_snake(channels)
        self.up = Upsampling(channels, channels // 2, 2 * rate, rate)
        self.units = nn.ModuleList(ResidualUnit(channels // 2, dilation) for dilation in DILATIONS)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.act(x * self.scale[:, None] + self.offset[:, None])
        if runs_kernels(x):
            return run([self.up, *self.units], x, memory)
        x = self.up(x, memory)
        for unit in self.units:
            x = unit(x, memory)
        return x


class Decoder(nn.Module):
    """Decoder that converts latents to samples."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        words = config.num_numbers
        rates = config.decoder_rates
        channels = [config.decoder_channels >> index for index in range(1 + len(rates))]
        self.enter = Convolution(words, words, KERNEL, groups=words)
        self.widen = Convolution(words, channels[0], 1)
        self.blocks = nn.ModuleList(DecoderBlock(*pair) for pair in zip(channels[:-1], rates, strict=True))
        self.act = channel_snake(channels[-1])
        self.leave = Convolution(channels[-1], 1, KERNEL)

    def forward(self, latents: Tensor, memory: Memory) -> Tensor:
        """Decode latents [B, D, n] to samples [B, n * rates]."""
        x = self.widen(self.enter(latents, memory), memory)
        for block in self.blocks:
            x = block(x, memory)
        return self.leave(self.act(x), memory)[:, 0].tanh()


class AudioVae(CausalCodec):
    """VoxCPM2 codec. Its state is the decoder's memory. Windows need no neighbouring frames."""

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.spec = CodecSpec(
            name=MODEL_TYPE,
            sample_rate=config.sample_rate,
            samples_per_frame=config.samples_per_patch,
            num_codebooks=config.num_words,
            codebook_size=0,
            streaming=Stateful(),
            reads_rows=True,
            input_rate=config.input_rate,
            are_latents=True,
        )
        self.state_size = num_kept(self.decoder)

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording to patches of words, int64 [K, T]. The last patch is padded with silence."""
        unit = self.config.input_samples_per_patch
        weight = self.decoder.leave.conv.weight
        samples = F.pad(torch.from_numpy(np.ascontiguousarray(pcm)), (0, -len(pcm) % unit)).to(weight)
        latents = self.encoder(samples[None, None])[0].T.float().contiguous().cpu().numpy()
        return latents.reshape(-1, self.config.num_words).view(np.int32).T.astype(np.int64)

    def samples(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        latents = codes.to(torch.int32).contiguous().view(torch.float32).to(self.decoder.leave.conv.weight.dtype)
        patches = latents.transpose(1, 2).unflatten(2, (self.config.num_latents, self.config.num_numbers))
        pcm: Tensor = self.decoder(patches.flatten(1, 2).transpose(1, 2).contiguous(), memory)
        return pcm


def published_names(config: AudioVaeConfig) -> dict[str, str]:
    """Return the published names of layers by our names."""
    names = {"encoder.enter.conv": "encoder.block.0", "encoder.mean.conv": "encoder.fc_mu"}

    def add_units(module: str, published: str, first: int) -> None:
        for index in range(len(DILATIONS)):
            ours = f"{module}.units.{index}"
            theirs = f"{published}.{first + index}.block"
            layers: Sequence[str] = ("act1", "conv1.conv", "act2", "conv2.conv")
            names.update({f"{ours}.{layer}": f"{theirs}.{at}" for at, layer in enumerate(layers)})

    for index in range(len(config.encoder_rates)):
        module = f"encoder.blocks.{index}"
        published = f"encoder.block.{index + 1}.block"
        add_units(module, published, 0)
        names |= {f"{module}.act": f"{published}.3", f"{module}.down": f"{published}.4"}
    names |= {"decoder.enter.conv": "decoder.model.0", "decoder.widen.conv": "decoder.model.1"}
    for index in range(len(config.decoder_rates)):
        module = f"decoder.blocks.{index}"
        published = f"decoder.model.{index + 2}.block"
        names |= {f"{module}.act": f"{published}.0", f"{module}.up.conv": f"{published}.1"}
        names |= {f"{module}": f"decoder.sr_cond_model.{index + 2}"}
        add_units(module, published, 2)
    last = 2 + len(config.decoder_rates)
    return names | {"decoder.act": f"decoder.model.{last}", "decoder.leave.conv": f"decoder.model.{last + 1}"}


def codec_shapes(config: AudioVaeConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each codec tensor by name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in AudioVae(config).state_dict().items()}


def load(directory: Path, device: str = "cpu") -> AudioVae:
    """Load the codec from a checkpoint; raise CheckpointError if a file is missing or does not fit the codec."""
    directory = codec_directory(directory)
    record = json_object(directory / CONFIG_FILE)
    vae = record.get("audio_vae_config")
    size = record.get("patch_size")
    if record.get("model_type") != MODEL_TYPE or not isinstance(vae, Mapping) or not isinstance(size, int):
        expected = f"model_type {MODEL_TYPE} with audio_vae_config and patch_size"
        raise CheckpointError(f"{directory / CONFIG_FILE}: expected {expected}")
    codec = AudioVae(AudioVaeConfig.from_record(vae, size))
    path = directory / "model.safetensors"
    load_strictly(codec, read_tensors(path), path)
    return streaming.join_constants(codec.eval().requires_grad_(False).to(device))
