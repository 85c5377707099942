"""`fish_s2`: codec of Fish Audio S2 Pro (44.1 kHz, 21.5 frames of 1 + 9 codes per second).

codes ─► 1 + 9 codebooks ─► transformer ─► 2 × (↑2, ConvNeXt) ─► conv ─► 4 × (↑ 8, 8, 4, 2) ─► conv ─► tanh ─► pcm
         21.5 per second    127 back, 8 times   6 steps back     6 back   78 steps back each      6 back

pcm ─► conv ─► 4 × (↓ 2, 4, 8, 8) ─► transformer ─► conv ─► 2 × (↓2, ConvNeXt) ─► transformer ─► 1 + 9 codebooks ─► …
                                     511 back, 4 times                            127 back, 8 times

All layers are causal and store their last inputs in the state, so chunks may have any size. The first codebook (4096
entries) is semantic; the others (1024 entries) encode the rest. The layers are those of Qwen3-TTS's decoder, the
codebooks those of `residual_codebooks.py`, and the activations those of DAC.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Stateful
from stretto.codecs.causal import (
    DILATIONS,
    KERNEL,
    Block,
    ConvNext,
    Convolution,
    Downsampling,
    ResidualUnit,
    Upsampling,
    channel_snake,
    samples_of,
)
from stretto.codecs.device import JointCodebooks
from stretto.codecs.kernels.operators import runs_kernels
from stretto.codecs.memory import CausalCodec, Memory, encoded_parts, num_kept
from stretto.codecs.qwen3_12hz.decoder import Transformer, TransformerShape
from stretto.codecs.residual_codebooks import Quantizer, QuantizerConfig, joined_codebooks
from stretto.codecs.streaming import prepare, prepare_products
from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import check_value, json_object
from stretto.weights.loading import CONFIG_FILE, codec_directory, load_strictly, read_tensors

MODEL_TYPE = "fish_s2"
HEAD_DIM = 64  # the same in all transformers, like the next two constants
ROPE_THETA = 10_000.0
NORM_EPS = 1e-5
LAST_KERNEL = 3  # kernel size of the encoder's last convolution
# maximum of a number in config.json, and maximum length of a list
MAX_SIZE = 1 << 16
MAX_STAGES = 8
MAX_WINDOW = 1 << 12  # steps; no weight depends on it


@dataclass(frozen=True, slots=True)
class FishS2Config:
    """Sizes of the codec, under the authors' names if they have one.

    Attributes:
        sample_rate: In Hz.
        n_codebooks: Number of residual codebooks, without the semantic one.
        codebook_size: Number of entries of a residual codebook.
        encoder_dim: Channels of the encoder's first layer, doubled by each block.
        encoder_rates: Strides of the encoder's blocks.
        downsample_factor: Strides from the rate of the encoder's transformer to frames.
        decoder_dim: Channels of the decoder's first layer, halved by each block.
        decoder_rates: Upsampling rates of the decoder's blocks.
        n_layer: Layers of the two transformers at the rate of frames.
        window_size: Number of frames that a frame attends to, including itself.
        encoder_window_size: Number of steps that a step of the encoder's transformer attends to, including itself.
    """

    sample_rate: int
    n_codebooks: int
    semantic_codebook_size: int
    codebook_size: int
    codebook_dim: int
    encoder_dim: int
    encoder_rates: tuple[int, ...]
    downsample_factor: tuple[int, ...]
    decoder_dim: int
    decoder_rates: tuple[int, ...]
    n_layer: int
    intermediate_size: int
    window_size: int
    encoder_n_layer: int
    encoder_intermediate_size: int
    encoder_window_size: int

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "FishS2Config":
        """Return the sizes in a config.json; raise CheckpointError if one is missing or not supported."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = record.get(field.name)
            is_list = field.type is not int
            numbers: Any = value if is_list else [value]
            most = MAX_WINDOW if field.name.endswith("window_size") else MAX_SIZE
            is_valid = isinstance(numbers, list | tuple) and 1 <= len(numbers) <= MAX_STAGES
            if not is_valid or not all(type(number) is int and 1 <= number <= most for number in numbers):
                expected = f"1 to {MAX_STAGES} integers" if is_list else "an integer"
                raise CheckpointError(f"{field.name}: expected {expected} in [1, {most}], got {shown(value)}")
            values[field.name] = tuple(numbers) if is_list else value
        config = cls(**values)
        for name, channels, divisor in (
            ("encoder_dim", config.width, HEAD_DIM),
            ("decoder_dim", config.decoder_dim, 1 << len(config.decoder_rates)),
        ):
            if channels % divisor:
                raise CheckpointError(f"{name}: expected a multiple of {divisor} channels, got {channels}")
        if prod(config.decoder_rates) != prod(config.encoder_rates):
            expected = f"rates with the product of encoder_rates, {list(config.encoder_rates)}"
            raise CheckpointError(f"decoder_rates: expected {expected}, got {list(config.decoder_rates)}")
        return config

    def to_record(self) -> dict[str, Any]:
        """Return the contents of config.json."""
        return {"model_type": MODEL_TYPE, **asdict(self)}

    @property
    def width(self) -> int:
        """Number of channels of latents, and width of the transformers."""
        return self.encoder_dim << len(self.encoder_rates)

    @property
    def samples_per_frame(self) -> int:
        return prod(self.encoder_rates) * prod(self.downsample_factor)

    @property
    def transformer(self) -> TransformerShape:
        """Sizes of the two transformers at the rate of frames."""
        return self._transformer(self.n_layer, self.intermediate_size, self.window_size)

    @property
    def encoder_transformer(self) -> TransformerShape:
        return self._transformer(self.encoder_n_layer, self.encoder_intermediate_size, self.encoder_window_size)

    def _transformer(self, num_layers: int, inner: int, window: int) -> TransformerShape:
        return TransformerShape(
            hidden_size=self.width,
            num_hidden_layers=num_layers,
            num_attention_heads=self.width // HEAD_DIM,
            num_key_value_heads=self.width // HEAD_DIM,
            head_dim=HEAD_DIM,
            intermediate_size=inner,
            sliding_window=window,
            rope_theta=ROPE_THETA,
            rms_norm_eps=NORM_EPS,
        )

    def quantizer(self, num_codebooks: int, size: int) -> QuantizerConfig:
        """Return the sizes of a quantiser of `num_codebooks` codebooks with `size` entries."""
        return QuantizerConfig(self.width, self.width, self.width, num_codebooks, size, self.codebook_dim)


class EncoderBlock(nn.Module):
    """Residual units, Snake, and a strided convolution that doubles the channels."""

    def __init__(self, channels: int, rate: int) -> None:
        super().__init__()
        units = [ResidualUnit(channels, dilation, snake=channel_snake) for dilation in DILATIONS]
        self.block = nn.ModuleList([*units, channel_snake(channels), Downsampling(channels, 2 * channels, rate)])

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        *units, snake, downsampling = self.block
        for unit in units:
            x = unit(x, memory)
        return downsampling(x, memory, snake)


class Encoder(nn.Module):
    """Encoder that converts samples to latents."""

    def __init__(self, config: FishS2Config) -> None:
        super().__init__()
        width = config.width
        channels = config.encoder_dim
        blocks = [EncoderBlock(channels << index, rate) for index, rate in enumerate(config.encoder_rates)]
        last = [channel_snake(width), Convolution(width, width, LAST_KERNEL)]
        self.block = nn.ModuleList([Convolution(1, channels, KERNEL), *blocks, *last])
        self.transformer = Transformer(config.encoder_transformer)
        self.downsample = nn.ModuleList(
            nn.ModuleList([nn.Conv1d(width, width, factor, factor), ConvNext(width)])
            for factor in config.downsample_factor
        )
        self.pre_transformer = Transformer(config.transformer)
        self._steps = prod(config.downsample_factor)

    def forward(self, pcm: Tensor, first: Tensor, memory: Memory) -> Tensor:
        """Encode samples [B, 1, n · hop] from frames `first` [B] on to latents [B, n, C]."""
        *layers, snake, last = self.block
        x = pcm
        for layer in layers:
            x = layer(x, memory)
        x = self.transformer(x.transpose(1, 2), first * self._steps, memory).transpose(1, 2)
        x = last(x, memory, snake)
        for stage in self.downsample:
            strided, block = stage.children()
            x = block(strided(x), memory)
        return self.pre_transformer(x.transpose(1, 2), first, memory)


class FishS2Codec(CausalCodec):
    """Codec of Fish Audio S2 Pro. Its state is the decoder's memory. Windows need no neighbouring frames."""

    def __init__(self, config: FishS2Config) -> None:
        super().__init__()
        width = config.width
        channels = config.decoder_dim
        self.encoder = Encoder(config)
        self.semantic = Quantizer(config.quantizer(1, config.semantic_codebook_size))
        self.residual = Quantizer(config.quantizer(config.n_codebooks, config.codebook_size))
        self.post_transformer = Transformer(config.transformer)
        self.upsample = nn.ModuleList(
            nn.ModuleList([Upsampling(width, width, factor, factor), ConvNext(width)])
            for factor in reversed(config.downsample_factor)
        )
        blocks = [
            Block(channels >> index, rate, snake=channel_snake) for index, rate in enumerate(config.decoder_rates)
        ]
        left = channels >> len(blocks)
        layers = [Convolution(width, channels, KERNEL), *blocks, channel_snake(left), Convolution(left, 1, KERNEL)]
        self.decoder = nn.ModuleList(layers)
        self.spec = CodecSpec(
            name=MODEL_TYPE,
            sample_rate=config.sample_rate,
            samples_per_frame=config.samples_per_frame,
            num_codebooks=1 + config.n_codebooks,
            codebook_size=config.semantic_codebook_size,
            streaming=Stateful(),
            reads_rows=True,
        )
        self._last_code = config.codebook_size - 1
        self._joined: JointCodebooks | None = None  # result of `joined_codebooks`
        self.state_size = num_kept(self.post_transformer, self.upsample, self.decoder)

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n], to codes, int64 [K, T]. The last frame is padded with zeros."""
        hop = self.spec.samples_per_frame
        like = next(self.parameters())
        samples = F.pad(torch.from_numpy(np.ascontiguousarray(pcm)), (0, -len(pcm) % hop)).to(like)
        state = like.new_zeros(1, num_kept(self.encoder))
        parts = [np.zeros((self.spec.num_codebooks, 0), np.int64)]
        for block, first, memory in encoded_parts(samples, hop, state):
            codes = self.codes_of(self.encoder(block[None, None], first, memory))
            parts.append(codes[0].cpu().numpy())
        return np.concatenate(parts, 1)

    def codes_of(self, latents: Tensor) -> Tensor:
        """Return the codes [B, K, n] of latents [B, n, C]."""
        codes = self.semantic.encode(latents, 1)
        num_residual = self.spec.num_codebooks - 1
        if not num_residual:
            return codes
        residual = latents - self.semantic.decode(codes)
        return torch.cat([codes, self.residual.encode(residual, num_residual)], 1)

    def samples(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        """Decode frames. A residual code above the last one counts as the last one, as in the authors' code.

        The authors' language model has as many codes for each codebook as for the semantic one.
        """
        x = self.post_transformer(self._latents(codes), first, memory).transpose(1, 2)
        return samples_of(x, memory, self.upsample, self.decoder).tanh()

    def _latents(self, codes: Tensor) -> Tensor:
        """Return the latents [B, n, C] of codes [B, K, n], the sums of their entries."""
        if runs_kernels(self.semantic.quantizers[0].codebook.weight):
            books = [*self.semantic.quantizers, *self.residual.quantizers]
            self._joined = joined_codebooks(books, self._joined)
            return self._joined.sum_of(codes, self._last_code)
        residual = self.residual.decode(codes[:, 1:].clamp(max=self._last_code))
        return self.semantic.decode(codes[:, :1]) + residual


def codec_shapes(config: FishS2Config) -> dict[str, tuple[int, ...]]:
    """Map the name of each codec tensor to its shape."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in FishS2Codec(config).state_dict().items()}


def load(directory: Path, device: str = "cpu") -> FishS2Codec:
    """Load the codec from a checkpoint; raise CheckpointError if a file is missing or does not fit the codec."""
    directory = codec_directory(directory)
    config_path = directory / CONFIG_FILE
    record = json_object(config_path)
    check_value("model_type", record.get("model_type"), MODEL_TYPE, file=str(config_path))
    try:
        config = FishS2Config.from_record(record)
    except CheckpointError as error:
        raise CheckpointError(f"{config_path}: {error}") from error
    with torch.device("meta"):
        codec = FishS2Codec(config)
    path = directory / "model.safetensors"
    load_strictly(codec, read_tensors(path), path, assign=True)
    codec.eval().requires_grad_(False).to(device)
    prepare_products(codec)
    for network in (codec.upsample, codec.decoder):
        prepare(network)
    return codec
