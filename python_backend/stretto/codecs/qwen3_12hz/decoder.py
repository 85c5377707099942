"""Decoder of the Qwen3-TTS codec, which converts frames of codes to samples, window by window.

codes ─► 1 + 15 codebooks ─► conv ─► transformer ─► 2 × (↑2, ConvNeXt) ─► conv ─► 4 × (↑ 8, 5, 4, 3) ─► conv ─► pcm
         12.5 per second     2 back  71 back, 8 times   6 steps back      6 back   78 steps back each       6 back

All layers are causal and store their last inputs in the state, so a window is decoded without the frames before it.

`config.json` comes from `speech_tokenizer/` in a Qwen3-TTS checkpoint (https://huggingface.co/Qwen). Every value that
the decoder needs is required, because the defaults of the published classes differ from the published files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import MimiConfig

from stretto.codecs import device
from stretto.codecs.causal import KERNEL, Block, ConvNext, Convolution, SnakeBeta, Upsampling, samples_of
from stretto.codecs.device import Ending
from stretto.codecs.kernels.operators import runs_kernels
from stretto.codecs.kernels.sizes import GATE
from stretto.codecs.memory import Memory
from stretto.codecs.rotary_attention import Scale, can_launch, run_layers
from stretto.codecs.streaming import WithConstants
from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import CONFIG_FILE

MODEL_TYPE = "qwen3_tts_tokenizer_12hz"
SEMANTIC = 1  # number of initial codebooks with their own projection
TAKEN_FOR_GRANTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_scaling": None,
    "num_semantic_quantizers": SEMANTIC,
}


@dataclass(frozen=True, slots=True)
class TransformerShape:
    """Sizes of a transformer.

    Attributes:
        sliding_window: Number of steps that a step attends to, including itself.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    sliding_window: int
    rope_theta: float
    rms_norm_eps: float


@dataclass(frozen=True, slots=True)
class DecoderShape(TransformerShape):
    """Sizes in `decoder_config`, under their published names: transformer, codebooks, convolutions.

    Attributes:
        codebook_dim: Width of the summed codebook entries after projection; an entry is half as wide.
        latent_dim: Number of channels before and after the transformer.
        decoder_dim: Number of channels of the first convolution.
    """

    codebook_size: int
    codebook_dim: int
    num_quantizers: int
    latent_dim: int
    decoder_dim: int
    upsampling_ratios: tuple[int, ...]
    upsample_rates: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not _is_positive(value, (int, float) if field.type is float else (int,)):
                raise ValueError(f"decoder_config.{field.name} must be positive, got {value!r}")
        if self.num_quantizers <= SEMANTIC:
            raise ValueError(f"decoder_config.num_quantizers must be > {SEMANTIC}, got {self.num_quantizers}")
        for name, divisor in {
            "codebook_dim": 2,
            "head_dim": 2,
            "num_attention_heads": self.num_key_value_heads,
            "decoder_dim": 1 << len(self.upsample_rates),
        }.items():
            if getattr(self, name) % divisor:
                raise ValueError(f"decoder_config.{name} must be a multiple of {divisor}, got {getattr(self, name)}")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "DecoderShape":
        """Return the sizes in `decoder_config`; raise ValueError if a value is missing or unsupported."""
        odd = {name: record[name] for name, value in TAKEN_FOR_GRANTED.items() if record.get(name, value) != value}
        if odd:
            raise ValueError(f"decoder_config: expected { {name: TAKEN_FOR_GRANTED[name] for name in odd} }, got {odd}")
        missing = [field.name for field in fields(cls) if field.name not in record]
        if missing:
            raise ValueError(f"decoder_config lacks {', '.join(missing)}")
        published = {field.name: record[field.name] for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in published.items()
        }
        return cls(**values)

    @property
    def hop(self) -> int:
        """Number of samples per frame."""
        return prod(self.upsampling_ratios) * prod(self.upsample_rates)


@dataclass(frozen=True)
class Qwen3CodecConfig:
    """Sizes in a checkpoint; `encoder` is the encoder's MimiConfig."""

    decoder: DecoderShape
    encoder: MimiConfig
    sample_rate: int

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Qwen3CodecConfig":
        """Return the sizes in `config.json`; raise ValueError if values are missing or inconsistent."""
        if record.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type must be {MODEL_TYPE}, got {record.get('model_type')!r}")
        names = ("decoder_config", "encoder_config", "encoder_valid_num_quantizers", "input_sample_rate")
        missing = [name for name in (*names, "output_sample_rate", "decode_upsample_rate") if name not in record]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        decoder = DecoderShape.from_record(record["decoder_config"])
        encoder = MimiConfig.from_dict(dict(record["encoder_config"]))
        encoder._attn_implementation = "sdpa"
        pairs = {
            "decode_upsample_rate": (record["decode_upsample_rate"], decoder.hop),
            "input_sample_rate": (record["input_sample_rate"], record["output_sample_rate"]),
            "encoder_valid_num_quantizers": (record["encoder_valid_num_quantizers"], decoder.num_quantizers),
            "encoder_config.codebook_size": (encoder.codebook_size, decoder.codebook_size),
            "encoder_config.frame_rate": (encoder.frame_rate * decoder.hop, record["output_sample_rate"]),
            "encoder_config.upsampling_ratios": (2 * prod(encoder.upsampling_ratios or ()), decoder.hop),
        }
        odd = [
            f"{name} is {actual} instead of {expected}"
            for name, (actual, expected) in pairs.items()
            if actual != expected
        ]
        if encoder.num_quantizers < decoder.num_quantizers:
            odd.append(f"encoder_config.num_quantizers is {encoder.num_quantizers}, below {decoder.num_quantizers}")
        if encoder.audio_channels != 1:
            odd.append(f"encoder_config.audio_channels is {encoder.audio_channels} instead of 1")
        if odd:
            raise ValueError(f"encoder and decoder do not match: {'; '.join(odd)}")
        return cls(decoder, encoder, record["output_sample_rate"])


def read_config(directory: Path) -> Qwen3CodecConfig:
    """Return the sizes in `config.json`; raise CheckpointError if it is missing or belongs to another codec."""
    try:
        return Qwen3CodecConfig.from_record(json_object(directory / CONFIG_FILE))
    except (*UNPARSABLE, StrictDataclassError) as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error


def _is_positive(value: Any, kinds: tuple[type, ...]) -> bool:
    """Return True if `value` is a positive number of one of these types, or a non-empty tuple of such numbers."""
    numbers = value if isinstance(value, tuple) else (value,)
    return bool(numbers) and all(type(number) in kinds and number > 0 for number in numbers)


Rotation = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Sliding-window attention. Its part of the state has `kept` elements: keys, then values."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.heads = shape.num_attention_heads
        self.width = shape.head_dim
        self.before = shape.sliding_window - 1
        self.is_grouped = shape.num_key_value_heads != self.heads
        queried = self.heads * self.width
        held = shape.num_key_value_heads * self.width
        self.q_proj = nn.Linear(shape.hidden_size, queried, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, held, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, held, bias=False)
        self.o_proj = nn.Linear(queried, shape.hidden_size, bias=False)
        self.kept = 2 * self.before * held
        self.sizes = device.Heads(self.heads, shape.num_key_value_heads, self.width, self.before, is_paired=False)
        self.rotation_at = rotation_at

    def forward(self, x: Tensor, rotation: Rotation, is_seen: Tensor, memory: Memory) -> Tensor:
        """Return the attention outputs [B, n, H] for x [B, n, H] and the mask is_seen, bool [B, 1, n, before + n]."""
        query, key, value = (
            linear(x).unflatten(2, (-1, self.width)) for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        key = memory.recall(rotated(key, rotation), self.before, time=1)
        value = memory.recall(value, self.before, time=1)
        query, key, value = (projected.transpose(1, 2) for projected in (rotated(query, rotation), key, value))
        seen = F.scaled_dot_product_attention(query, key, value, is_seen, enable_gqa=self.is_grouped)
        return self.o_proj(seen.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Feed-forward layer (SwiGLU)."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False) for _ in range(2)
        )
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward layer, each with pre-norm, LayerScale and a residual connection."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm, self.post_attention_layernorm = (
            nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps) for _ in range(2)
        )
        self.self_attn_layer_scale = Scale(shape.hidden_size)
        self.mlp_layer_scale = Scale(shape.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation, is_seen: Tensor, memory: Memory) -> Tensor:
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), rotation, is_seen, memory))
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))

    def launch(self, x: Tensor, window: device.Window, memory: Memory) -> Tensor:
        """Return the outputs on a GPU, in five launches."""
        attention = self.self_attn
        weight = device.joined_weight([attention.q_proj, attention.k_proj, attention.v_proj])
        state = memory.part(attention.kept, x.shape[1])
        last = attention.o_proj, self.self_attn_layer_scale.scale
        norm = device.norm_of(self.input_layernorm)
        x = device.attend(x, norm, weight, attention.sizes, window, state, last)
        gated = device.multiply(
            x,
            device.joined_weight([self.mlp.gate_proj, self.mlp.up_proj], is_interleaved=True),
            norm=device.norm_of(self.post_attention_layernorm),
            ending=Ending(activation=GATE),
        )
        ending = Ending(gain=self.mlp_layer_scale.scale, residual=x)
        return device.multiply(gated, self.mlp.down_proj.weight, ending=ending)


class Transformer(nn.Module):
    """Transformer over latents [B, n, C] at positions `first` to `first + n - 1` of each utterance.

    Args:
        channels: Number of channels of the latents, which are projected to the transformer's width and back; None if
            they are as wide as the transformer.
    """

    frequencies: Tensor

    def __init__(self, shape: TransformerShape, channels: int | None = None) -> None:
        super().__init__()
        self.input_proj = nn.Identity() if channels is None else nn.Linear(channels, shape.hidden_size)
        self.layers: Any = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.output_proj = nn.Identity() if channels is None else nn.Linear(shape.hidden_size, channels)
        exponents = torch.arange(0, shape.head_dim, 2, device="cpu").float() / shape.head_dim
        self.register_buffer("frequencies", 1 / shape.rope_theta**exponents, persistent=False)

    def forward(self, latents: Tensor, first: Tensor, memory: Memory) -> Tensor:
        if can_launch(self.layers, latents):
            return self._launch(latents, first, memory)
        # the residual stream has the dtype of the weights, in half precision as well
        x = self.input_proj(latents).to(self.norm.weight.dtype)
        x = run_layers(self.layers, x, first, self.frequencies, memory)
        return self.output_proj(self.norm(x))

    def _launch(self, latents: Tensor, first: Tensor, memory: Memory) -> Tensor:
        x = latents.contiguous()
        if isinstance(self.input_proj, nn.Linear):
            x = device.multiply(x, self.input_proj.weight, self.input_proj.bias)
        x = run_layers(self.layers, x, first, self.frequencies, memory)
        if isinstance(self.output_proj, nn.Linear):
            return device.multiply(x, self.output_proj.weight, self.output_proj.bias, device.norm_of(self.norm))
        return self.norm(x)


def rotation_at(first: Tensor, num_steps: int, frequencies: Tensor, dtype: torch.dtype) -> Rotation:
    """Return cosines and sines [B, n, 1, head_dim] for n steps from positions `first` [B].

    Angles are rounded to float32 in all precisions, as in training.
    """
    steps = first[:, None] + torch.arange(num_steps, device=first.device)
    angles = (steps.float()[..., None] * frequencies.float()).repeat(1, 1, 2)[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Apply the rotary embedding, whose pairs of coordinates are half a head apart, to x [B, n, heads, width]."""
    cosines, sines = rotation
    one, other = x.chunk(2, -1)
    return x * cosines + torch.cat([-other, one], -1) * sines


FIRST_KERNEL = 3
LEAST_USAGE = 1e-5  # minimum usage count of a codebook entry


class Codebook(WithConstants):
    """Codebook in its training form: sums of vectors and usage counts; an entry is their quotient.

    Attributes:
        entries: The quotients, [size, C]; None before `prepare`.
    """

    entries: Tensor | None

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("entries", None, persistent=False)
        self.cluster_usage = nn.Parameter(torch.ones(size))
        self.embedding_sum = nn.Parameter(torch.zeros(size, width))

    def forward(self, codes: Tensor) -> Tensor:
        """Return the entries [B, n, C] of codes [B, n]."""
        return F.embedding(codes, self.joined_entries())

    def joined_entries(self) -> Tensor:
        """Return all entries of the codebook, [size, C]."""
        return self._quotients() if self.entries is None else self.entries

    def join(self) -> None:
        super().join()
        self.register_buffer("entries", self._quotients().detach(), persistent=False)

    def _quotients(self) -> Tensor:
        return self.embedding_sum / self.cluster_usage.clamp(min=LEAST_USAGE)[:, None]


class Codebooks(nn.Module):
    """Codebooks whose entries are summed and then projected."""

    def __init__(self, shape: DecoderShape, number: int) -> None:
        super().__init__()
        width = shape.codebook_dim // 2
        self.books = [Codebook(shape.codebook_size, width) for _ in range(number)]
        layers = nn.ModuleList(nn.ModuleDict({"_codebook": book}) for book in self.books)  # matches the tensor names
        self.vq = nn.ModuleDict({"layers": layers})
        self.output_proj = nn.Conv1d(width, shape.codebook_dim, 1, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the latents [B, C, n] for codes [B, K, n], which belong to the first K codebooks."""
        entries = [book(indices) for book, indices in zip(self.books, codes.unbind(1), strict=False)]
        return self.output_proj(torch.stack(entries).sum(0).transpose(1, 2))


class Quantizer(nn.Module):
    """Codebooks of a frame: one semantic codebook and the acoustic ones."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.rvq_first = Codebooks(shape, SEMANTIC)
        self.rvq_rest = Codebooks(shape, shape.num_quantizers - SEMANTIC)
        self._joint: device.SplitCodebooks | None = None

    def forward(self, codes: Tensor) -> Tensor:
        if runs_kernels(self.rvq_first.output_proj.weight):
            return self._launch(codes)
        latents = self.rvq_first(codes[:, :SEMANTIC])
        return latents + self.rvq_rest(codes[:, SEMANTIC:]) if codes.shape[1] > SEMANTIC else latents

    def _launch(self, codes: Tensor) -> Tensor:
        """Return the latents on a GPU, in two launches: the sums of both parts, and one product of them."""
        projections = [half.output_proj for half in (self.rvq_first, self.rvq_rest)]
        if self._joint is None or self._joint.weight.device != codes.device:
            books = [*self.rvq_first.books, *self.rvq_rest.books]
            self._joint = device.split_codebooks([book.joined_entries() for book in books], projections)
            for book, entries in zip(books, self._joint.entries, strict=True):
                book.entries = entries
        return self._joint.sum_of(codes, SEMANTIC)


class Decoder(nn.Module):
    """Decoder of the Qwen3-TTS codec, which converts codes to samples."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.quantizer = Quantizer(shape)
        self.pre_conv = Convolution(shape.codebook_dim, shape.latent_dim, FIRST_KERNEL)
        self.pre_transformer = Transformer(shape, shape.latent_dim)
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

    def forward(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        """Decode codes [B, K, n], whose first frames have the indices `first` [B], to samples [B, n · hop]."""
        latents = self.pre_conv(self.quantizer(codes), memory).transpose(1, 2)
        x = self.pre_transformer(latents, first, memory).transpose(1, 2)
        return samples_of(x, memory, self.upsample, self.decoder)
