"""Reader of `config.json` of `speech_tokenizer/` in a Qwen3-TTS checkpoint (https://huggingface.co/Qwen).

The published classes have other defaults than the published files, so every value that the decoder needs is required.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import MimiConfig

from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import CONFIG_FILE

MODEL_TYPE = "qwen3_tts_tokenizer_12hz"
SEMANTIC = 1  # number of first codebooks with their own projection
TAKEN_FOR_GRANTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_scaling": None,
    "num_semantic_quantizers": SEMANTIC,
}


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """`decoder_config`, by its published names: codebooks, transformer, convolutions.

    Attributes:
        codebook_dim: Width of the sum of all codebooks; each is half as wide.
        sliding_window: Number of steps that a step attends to, itself included.
        latent_dim: Channels before and after the transformer.
        decoder_dim: Channels of the first convolution.
    """

    codebook_size: int
    codebook_dim: int
    num_quantizers: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    sliding_window: int
    rope_theta: float
    rms_norm_eps: float
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
        """Return the sizes in `decoder_config`; raise ValueError for a missing or unsupported value."""
        odd = {name: record[name] for name, value in TAKEN_FOR_GRANTED.items() if record.get(name, value) != value}
        if odd:
            raise ValueError(f"decoder_config: expected { {name: TAKEN_FOR_GRANTED[name] for name in odd} }, got {odd}")
        missing = [field.name for field in fields(cls) if field.name not in record]
        if missing:
            raise ValueError(f"decoder_config lacks {', '.join(missing)}")
        given = {field.name: record[field.name] for field in fields(cls)}
        values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in given.items()}
        return cls(**values)

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return prod(self.upsampling_ratios) * prod(self.upsample_rates)


@dataclass(frozen=True)
class Qwen3CodecConfig:
    """Sizes of a checkpoint; `encoder` is the Mimi configuration of the encoder."""

    decoder: DecoderShape
    encoder: MimiConfig
    sample_rate: int

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Qwen3CodecConfig":
        """Return the sizes in `config.json`; raise ValueError for missing or inconsistent values."""
        if record.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type must be {MODEL_TYPE}, got {record.get('model_type')!r}")
        names = ("decoder_config", "encoder_config", "encoder_valid_num_quantizers", "input_sample_rate")
        missing = [name for name in (*names, "output_sample_rate", "decode_upsample_rate") if name not in record]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        decoder = DecoderShape.from_record(record["decoder_config"])
        encoder = MimiConfig.from_dict(dict(record["encoder_config"]))
        encoder._attn_implementation = "sdpa"
        hears = {
            "decode_upsample_rate": (record["decode_upsample_rate"], decoder.hop),
            "input_sample_rate": (record["input_sample_rate"], record["output_sample_rate"]),
            "encoder_valid_num_quantizers": (record["encoder_valid_num_quantizers"], decoder.num_quantizers),
            "encoder_config.codebook_size": (encoder.codebook_size, decoder.codebook_size),
            "encoder_config.frame_rate": (encoder.frame_rate * decoder.hop, record["output_sample_rate"]),
            "encoder_config.upsampling_ratios": (2 * prod(encoder.upsampling_ratios or ()), decoder.hop),
        }
        odd = [f"{name}: {found} for {expected}" for name, (found, expected) in hears.items() if found != expected]
        if odd or encoder.num_quantizers < decoder.num_quantizers or encoder.audio_channels != 1:
            raise ValueError(
                f"encoder and decoder are not of one codec: {odd or [encoder.num_quantizers, encoder.audio_channels]}"
            )
        return cls(decoder, encoder, record["output_sample_rate"])


def read_config(directory: Path) -> Qwen3CodecConfig:
    """Return the sizes in a folder's `config.json`; raise CheckpointError if missing or of another codec."""
    try:
        return Qwen3CodecConfig.from_record(json_object(directory / CONFIG_FILE))
    except (*UNPARSABLE, StrictDataclassError) as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error


def _is_positive(value: Any, kinds: tuple[type, ...]) -> bool:
    """Return True if a number, or every number of a non-empty tuple, has one of these types and is positive."""
    numbers = value if isinstance(value, tuple) else (value,)
    return bool(numbers) and all(type(each) in kinds and each > 0 for each in numbers)
