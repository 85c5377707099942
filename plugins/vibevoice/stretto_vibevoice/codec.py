"""`vibevoice`: VibeVoice acoustic tokenizer (24 kHz, 7.5 latents/s), and the encoder of the semantic tokenizer.

latents ─► conv ─► 8 blocks ─► 6 × (↑ 8, 5, 5, 4, 2, 2, and 3 blocks) ─► conv ─► pcm

A block is a ConvNeXt with RMS norms. All layers are causal and store their last inputs in the state, so chunks of any
size give the samples of a single decode. A frame is a latent, scaled as in the language model, followed by a number
that is 1 in the first frame of a stretch of audio, where the decoder's state is reset.

Tensor names follow https://huggingface.co/docs/transformers/model_doc/vibevoice_acoustic_tokenizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil, isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Stateful, Window
from stretto.codecs.causal import Convolution, Downsampling, Upsampling
from stretto.codecs.memory import Memory, num_kept
from stretto.codecs.streaming import prepare_products
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.untrusted_files import entry, json_object
from stretto.weights.loading import CONFIG_FILE, codec_directory, load_strictly, read_tensors

MODEL_TYPE = "vibevoice"
ONE = int(np.float32(1).view(np.int32))  # word of the number 1
SAMPLE_RATE = 24000
# root mean square of a recording after normalisation, relative to full scale
LOUDNESS_DB = -25.0
SILENCE = 1e-6
PARTS = "audio_config"  # key of the tokenizer's hyperparameters in config.json, as in a release
SERVED = {"channels": 1, "hidden_act": "gelu"}
# Defaults of the published classes for values that a release may omit.
DEFAULTS: dict[str, Any] = SERVED | {
    "hidden_size": 64,
    "kernel_size": 7,
    "rms_norm_eps": 1e-5,
    "num_filters": 32,
    "downsampling_ratios": [2, 2, 4, 5, 5, 8],
    "depths": [3, 3, 3, 3, 3, 3, 8],
    "ffn_expansion": 4,
    "vae_std": 0.625,
}
# far above those of any release
MAX_SIZE = 1 << 16
MAX_LEVELS = 8
MAX_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """Hyperparameters of a tokenizer.

    Attributes:
        kernel: Kernel size of convolutions that keep the rate.
        filters: Channels at the sample rate, doubled by each downsampling.
        ratios: Downsampling ratios, in the encoder's order.
        depths: Number of encoder blocks at each rate, in the encoder's order.
        expansion: Width of a block's inner layer, relative to its channels.
        deviation: Standard deviation of the random factor that scales the noise added to the latents of a recording.
    """

    size: int
    kernel: int
    filters: int
    ratios: tuple[int, ...]
    depths: tuple[int, ...]
    expansion: int
    eps: float
    deviation: float

    @classmethod
    def from_record(cls, record: Mapping[str, Any], name: str = PARTS) -> "TokenizerConfig":
        """Return the sizes in a tokenizer's section of config.json; raise CheckpointError if they are not supported."""
        record = DEFAULTS | dict(record)
        for key, value in SERVED.items():
            if record[key] != value:
                raise CheckpointError(f"{name}.{key}: expected {value!r}, got {shown(record[key])}")
        sizes = [record[key] for key in ("hidden_size", "kernel_size", "num_filters", "ffn_expansion")]
        ratios = record["downsampling_ratios"]
        depths = record["depths"]
        if not isinstance(ratios, list | tuple) or not isinstance(depths, list | tuple):
            raise CheckpointError(
                f"{name}: downsampling_ratios and depths must be lists, got {shown(ratios)} and {shown(depths)}"
            )
        limits = [*((size, MAX_SIZE) for size in (*sizes, *ratios)), *((depth, MAX_BLOCKS) for depth in depths)]
        if not all(type(number) is int and 1 <= number <= most for number, most in limits):
            raise CheckpointError(
                f"{name}: sizes and ratios must be integers in [1, {MAX_SIZE}], and depths in [1, {MAX_BLOCKS}], got "
                f"{shown([sizes, ratios, depths], 200)}"
            )
        is_large = len(ratios) > MAX_LEVELS or prod(ratios) > MAX_SIZE
        if len(depths) != len(ratios) + 1 or min(ratios, default=1) < 2 or is_large:
            raise CheckpointError(
                f"{name}: expected at most {MAX_LEVELS} downsampling_ratios >= 2 with a product of at most {MAX_SIZE}, "
                f"and one more depth than ratios, got {shown(ratios)} and {shown(depths)}"
            )
        widest = record["num_filters"] << len(ratios)
        if widest > MAX_SIZE:
            raise CheckpointError(
                f"{name}: num_filters: expected at most {MAX_SIZE} channels at every rate, got {widest}"
            )
        reals = [record[key] for key in ("rms_norm_eps", "vae_std")]
        if not all(isinstance(real, float | int) and isfinite(real) and real >= 0 for real in reals):
            raise CheckpointError(f"{name}: expected rms_norm_eps and vae_std of at least 0, got {shown(reals)}")
        size, kernel, filters, expansion = sizes
        return cls(size, kernel, filters, tuple(ratios), tuple(depths), expansion, *map(float, reals))

    @property
    def hop(self) -> int:
        return prod(self.ratios)

    @property
    def reach(self) -> int:
        """Number of earlier frames on which a frame's output depends, in the encoder as well as in the decoder."""
        hops = [prod(self.ratios[:level]) for level in range(len(self.depths))]
        steps = 1 + self.hop + sum(depth * hop for depth, hop in zip(self.depths, hops, strict=True))
        return ceil(((self.kernel - 1) * steps + sum(hops[1:])) / self.hop)


class Norm(nn.Module):
    """RMS norm over the channels of x [B, n, C], computed in float32 or float64."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, inner)
        self.linear2 = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class Block(nn.Module):
    """ConvNeXt block: norm and depthwise convolution, then norm and feed-forward layers, each scaled and added."""

    def __init__(self, channels: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.norm = Norm(channels, config.eps)
        self.ffn_norm = Norm(channels, config.eps)
        self.mixer = Convolution(channels, channels, config.kernel, groups=channels)
        self.ffn = FeedForward(channels, config.expansion * channels)
        self.gamma, self.ffn_gamma = (nn.Parameter(torch.ones(channels)) for _ in range(2))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        mixed = self.mixer(self.norm(x.transpose(1, 2)).transpose(1, 2), memory)
        x = x + mixed * self.gamma[:, None]
        return x + (self.ffn(self.ffn_norm(x.transpose(1, 2))) * self.ffn_gamma).transpose(1, 2)


class Stage(nn.Module):
    """Convolution, which may change the rate, followed by blocks."""

    def __init__(self, conv: nn.Module, channels: int, depth: int, config: TokenizerConfig) -> None:
        super().__init__()
        self.conv = conv
        self.stage = nn.ModuleList(Block(channels, config) for _ in range(depth))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.conv(x, memory)
        for block in self.stage:
            x = block(x, memory)
        return x


class TokenizerNetwork(nn.Module):
    """Encoder or decoder: a stage at each rate, and a final convolution."""

    def __init__(self, stages: list[Stage], head: Convolution) -> None:
        super().__init__()
        self.stem = stages[0]
        self.conv_layers = nn.ModuleList(stages[1:])
        self.head = head
        self.num_kept = num_kept(self)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.stem(x, memory)
        for layer in self.conv_layers:
            x = layer(x, memory)
        return self.head(x, memory)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Process whole frames x [B, C, n] after `state` [B, num_kept]; return output and next state."""
        memory = Memory(state, torch.zeros(len(x), device=x.device), x.shape[2])
        y = self(x, memory)
        assert memory.is_complete, "every layer has stored its state"
        return y, memory.after


class Encoder(TokenizerNetwork):
    """Encoder from samples [B, 1, n * hop] to latents [B, D, n]."""

    def __init__(self, config: TokenizerConfig) -> None:
        channels = [config.filters << level for level in range(len(config.depths))]
        stages = [Stage(Convolution(1, channels[0], config.kernel), channels[0], config.depths[0], config)]
        for level, ratio in enumerate(config.ratios):
            down = Downsampling(channels[level], channels[level + 1], ratio)
            stages.append(Stage(down, channels[level + 1], config.depths[level + 1], config))
        super().__init__(stages, Convolution(channels[-1], config.size, config.kernel))


class Decoder(TokenizerNetwork):
    """Decoder from latents [B, D, n] to samples [B, 1, n * hop]."""

    def __init__(self, config: TokenizerConfig) -> None:
        channels = [config.filters << level for level in reversed(range(len(config.depths)))]
        depths = config.depths[::-1]
        stages = [Stage(Convolution(config.size, channels[0], config.kernel), channels[0], depths[0], config)]
        for level, ratio in enumerate(config.ratios[::-1]):
            up = Upsampling(channels[level], channels[level + 1], 2 * ratio, ratio)
            stages.append(Stage(up, channels[level + 1], depths[level + 1], config))
        super().__init__(stages, Convolution(channels[-1], 1, config.kernel))


@dataclass(frozen=True, slots=True)
class LatentScale:
    """Scaling of latents for the language model: (latent + bias) * factor."""

    factor: float
    bias: float

    def __post_init__(self) -> None:
        if not (isfinite(self.factor) and isfinite(self.bias) and self.factor != 0):
            raise ValueError(f"expected finite numbers and a factor other than 0, got {self.factor} and {self.bias}")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "LatentScale":
        """Return the scale in a converted config.json; raise CheckpointError if it is missing or invalid."""
        try:
            factor, bias = (entry(record, f"latent_{name}_factor", "config.json") for name in ("scaling", "bias"))
            return cls(float(factor), float(bias))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"latent_scaling_factor, latent_bias_factor: {error}") from error


class VibeVoiceCodec(nn.Module):
    """VibeVoice acoustic tokenizer. Its state is the decoder's memory. Windows need no neighbouring frames."""

    def __init__(self, config: TokenizerConfig, scale: LatentScale, has_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.scale = scale
        self.encoder = Encoder(config) if has_encoder else None
        self.decoder = Decoder(config)
        self.spec = CodecSpec(
            name=MODEL_TYPE,
            sample_rate=SAMPLE_RATE,
            samples_per_frame=config.hop,
            num_codebooks=config.size + 1,
            codebook_size=0,
            streaming=Stateful(),
            are_latents=True,
            reads_on_host=True,
        )

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording to scaled latents, as words, int64 [K, T]. The last frame is padded with silence.

        The recording is normalised to -25 dBFS. As in training, noise is added to the encoder's mean. The noise depends
        only on the samples, so that a recording always gives the same voice. Without an encoder, raise InvalidRequest.
        """
        if self.encoder is None:
            raise InvalidRequest("messages", "a named voice (this checkpoint has no encoder)", "a recording")
        scaled = normalised(pcm)
        weight = self.decoder.head.conv.weight
        samples = F.pad(torch.from_numpy(scaled), (0, -len(scaled) % self.config.hop)).to(weight)
        mean, _ = self.encoder.step(samples[None, None], weight.new_zeros(1, self.encoder.num_kept))
        means = mean[0].T.double().cpu().numpy()
        noise = stored_noise(pcm, 1 + means.size)
        latents = means + self.config.deviation * noise[0] * noise[1:].reshape(means.shape)
        scaled = ((latents + self.scale.bias) * self.scale.factor).astype(np.float32)
        begins = np.zeros((len(scaled), 1), np.float32)
        return np.concatenate([scaled, begins], 1).view(np.int32).T.astype(np.int64)

    def initial_state(self, batch: int) -> Tensor:
        return self.decoder.head.conv.weight.new_zeros(batch, self.decoder.num_kept)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode the window's latents; return the waveform [B, n] in [-1, 1] and the next state."""
        words = window.codes[:, :, window.left :]
        state = window.state
        starts = sorted({0, *(words[:, -1] == ONE).any(0).nonzero().flatten().tolist()})
        words = words.to(state.device, non_blocking=True)
        numbers = words.to(torch.int32).contiguous().view(torch.float32).to(state.dtype)
        latents = numbers[:, :-1] / self.scale.factor - self.scale.bias
        begins = words[:, -1] == ONE
        parts = []
        for start, stop in zip(starts, [*starts[1:], words.shape[2]], strict=True):
            state = state.masked_fill(begins[:, start, None], 0)
            pcm, state = self.decoder.step(latents[:, :, start:stop], state)
            parts.append(pcm[:, 0])
        return torch.cat(parts, 1).clamp(-1, 1), state


def normalised(pcm: np.ndarray) -> np.ndarray:
    """Normalise a recording, float32 [n], to -25 dBFS, or to a full-scale peak if it would clip."""
    level = float(np.sqrt(np.square(pcm, dtype=np.float64).mean()))
    loud: np.ndarray = pcm.astype(np.float32) * np.float32(10 ** (LOUDNESS_DB / 20) / (level + SILENCE))
    peak = float(np.abs(loud).max())
    return loud / np.float32(peak + SILENCE) if peak > 1 else loud


def stored_noise(pcm: np.ndarray, number: int) -> np.ndarray:
    """Return Gaussian noise, float64 [number], derived from the samples of a recording."""
    digest = blake2b(np.ascontiguousarray(pcm, np.float32).tobytes(), digest_size=16).digest()
    return gaussian_noise(int.from_bytes(digest, "little"), number)


def gaussian_noise(key: int, number: int) -> np.ndarray:
    """Return Gaussian noise, float64 [number], derived from a key of at most 128 bits."""
    bits = np.random.Philox(key=key).random_raw(2 * number)  # a documented algorithm; its output bits never change
    one, other = ((bits >> np.uint64(11)).astype(np.float64) + 0.5).reshape(2, -1) * 2.0**-53
    return np.sqrt(-2 * np.log(one)) * np.cos(2 * np.pi * other)


def codec_shapes(config: TokenizerConfig, has_encoder: bool = True) -> dict[str, tuple[int, ...]]:
    """Return the shape of each codec tensor by name."""
    with torch.device("meta"):
        codec = VibeVoiceCodec(config, LatentScale(1.0, 0.0), has_encoder)
        return {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}


def published_name(name: str) -> str:
    """Return the published name of an encoder or decoder tensor."""
    if ".conv_layers." not in f".{name}" or ".stage." in name:
        return name
    layer = "convtr.convtr" if name.startswith("decoder.") else "conv.conv"
    return name.replace("conv.conv", layer)


def load(directory: Path, device: str = "cpu") -> VibeVoiceCodec:
    """Load the codec from a checkpoint; raise CheckpointError if a file is missing or does not fit the codec."""
    directory = codec_directory(directory)
    record = json_object(directory / CONFIG_FILE)
    section = record.get(PARTS)
    if record.get("model_type") != MODEL_TYPE or not isinstance(section, Mapping):
        raise CheckpointError(f"{directory / CONFIG_FILE}: expected model_type {MODEL_TYPE} with {PARTS}")
    with torch.device("meta"):
        has_encoder = record.get("has_encoder") is not False
        codec = VibeVoiceCodec(TokenizerConfig.from_record(section), LatentScale.from_record(record), has_encoder)
    path = directory / "model.safetensors"
    load_strictly(codec, read_tensors(path), path, assign=True)
    return prepare_products(codec.eval().requires_grad_(False).to(device))
