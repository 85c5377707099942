"""GLM-4-Voice speech tokenizer (audio to speech tokens), an optional part of a checkpoint.

The folder `ssl_tokenizer/` contains the files published in https://huggingface.co/THUDM/glm-4-voice-tokenizer:
`config.json`, `preprocessor_config.json` and `model.safetensors`. A checkpoint without it accepts audio only as codes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from stretto.codecs.glm4_voice import HEARD_RATE
from stretto.errors import CheckpointError
from stretto.untrusted_files import json_object, regular_file
from stretto.weights.loading import UNREADABLE, in_float32, load_strictly

HALVED = 2  # spectrogram frames per step


@dataclass(frozen=True, slots=True)
class WhisperVqConfig:
    """Sizes of the tokenizer.

    Attributes:
        pooled_after: Index of the layer after which steps are pooled.
        quantized_after: Index of the layer after which steps are quantised.
        block: Number of steps per attention block; None for full attention.
    """

    mels: int
    hidden: int
    heads: int
    inner: int
    positions: int
    pool: int
    pooled_after: int
    quantized_after: int
    codes: int
    block: int | None
    is_mean: bool
    is_causal: bool

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "WhisperVqConfig":
        """Return the sizes in `config.json`; raise KeyError or ValueError if a value is missing or unsupported."""
        required = {"activation_function": "gelu", "encoder_causal_attention": False, "quantize_causal_encoder": False}
        odd = {name: record[name] for name, value in required.items() if record.get(name, value) != value}
        if odd or record["pooling_type"] not in ("avg", "max"):
            raise ValueError(f"expected {required} and pooling_type avg or max, got {odd} and {record['pooling_type']}")
        if not 1 <= record["pooling_position"] <= record["quantize_position"]:
            raise ValueError(f"pooling_position must be in [1, quantize_position], got {record['pooling_position']}")
        return cls(
            mels=record["num_mel_bins"],
            hidden=record["d_model"],
            heads=record["encoder_attention_heads"],
            inner=record["encoder_ffn_dim"],
            positions=record["max_source_positions"],
            pool=record["pooling_kernel_size"],
            pooled_after=record["pooling_position"],
            quantized_after=record["quantize_position"],
            codes=record["quantize_vocab_size"],
            block=record["quantize_causal_block_size"],
            is_mean=record["pooling_type"] == "avg",
            is_causal=record["encoder_causal_convolution"],
        )


class Attention(nn.Module):
    """Masked multi-head attention."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return attention outputs for x [B, T, H]; mask, bool [B, 1, T, T], is True for keys that a query may use."""
        query, key, value = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and feed-forward layer, each with pre-norm and a residual connection."""

    def __init__(self, config: WhisperVqConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.hidden, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden)
        self.fc1 = nn.Linear(config.hidden, config.inner)
        self.fc2 = nn.Linear(config.inner, config.hidden)
        self.final_layer_norm = nn.LayerNorm(config.hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperVq(nn.Module):
    """Whisper encoder with a vector quantiser: spectrograms to tokens."""

    def __init__(self, config: WhisperVqConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.mels, config.hidden, 3)
        self.conv2 = nn.Conv1d(config.hidden, config.hidden, 3, HALVED)
        self.embed_positions = nn.Embedding(config.positions, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.quantized_after))
        self.codebook = nn.Embedding(config.codes, config.hidden)

    def forward(self, features: Tensor, is_sound: Tensor) -> Tensor:
        """Return tokens [B, T / (2 pool)] for log-mel features [B, mels, T]; is_sound [B, T] is False for padding."""
        steps = self._steps(features)
        is_sound = is_sound[:, ::HALVED]
        mask = block_mask(is_sound, self.config.block)
        for number, layer in enumerate(self.layers, 1):
            steps = layer(steps, mask)
            if number == self.config.pooled_after:
                steps = self._pooled(steps)
                is_sound = is_sound[:, :: self.config.pool]
                block = None if self.config.block is None else self.config.block // self.config.pool
                mask = block_mask(is_sound, block)
        vectors = self.codebook.weight
        distances = vectors.square().sum(1) + steps.square().sum(2, keepdim=True) - 2 * steps @ vectors.T
        return distances.argmin(2)

    def _steps(self, features: Tensor) -> Tensor:
        """Convert features [B, mels, T] to transformer inputs [B, T / 2, H], including position embeddings."""
        padding = (2, 0) if self.config.is_causal else (1, 1)
        steps = F.gelu(self.conv1(F.pad(features, padding)))
        steps = F.gelu(self.conv2(F.pad(steps, padding))).transpose(1, 2)
        return steps + self.embed_positions.weight[: steps.shape[1]]

    def _pooled(self, steps: Tensor) -> Tensor:
        groups = steps.unflatten(1, (-1, self.config.pool))
        return groups.mean(2) if self.config.is_mean else groups.amax(2)


def block_mask(is_sound: Tensor, block: int | None) -> Tensor:
    """Return the attention mask, bool [B, 1, T, T]: True for steps in the same or earlier blocks, except padding.

    Args:
        is_sound: False for padding, bool [B, T].
        block: Number of steps per block; None for full attention.
    """
    block_of_step = torch.arange(is_sound.shape[1], device=is_sound.device) // (block or is_sound.shape[1])
    return (block_of_step[:, None] >= block_of_step) & is_sound[:, None, None]


FOLDER = "ssl_tokenizer"
CONFIG = "config.json"
FEATURES = "preprocessor_config.json"
SEGMENT = 30 * HEARD_RATE  # samples
NUMBERS = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "padding_value")
PREFIXES = ("model.encoder.", "encoder.", "")
# used only in training or after the quantiser
NOT_SERVED = ("layer_norm.", "embed_positions2.", "ema_count", "ema_weight")


class SpeechTokenizer(nn.Module):
    """GLM-4-Voice speech tokenizer (12.5 tokens per second)."""

    def __init__(self, config: WhisperVqConfig, features: WhisperFeatureExtractor) -> None:
        super().__init__()
        self.encoder = WhisperVq(config)
        self.features = features
        self.frames_per_token = HALVED * config.pool

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono `pcm`, float32 [n] at 16 kHz, to tokens, int64 [T], T = ceil(n / 1280).

        Each part of 30 s is encoded separately. Parts after the first are followed by silence, because the authors'
        code pads them to 30 s.
        """
        parts = [self._encode(pcm[at : at + SEGMENT], is_remainder=at > 0) for at in range(0, len(pcm), SEGMENT)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _encode(self, pcm: np.ndarray, is_remainder: bool) -> np.ndarray:
        """Return the tokens of at most 30 s of samples.

        If `is_remainder`, one token of silence is appended, which affects the features in the same way as padding to
        30 s.
        """
        hop = self.features.hop_length
        features = self.features(
            np.pad(pcm, (0, self.frames_per_token * hop * is_remainder)),
            sampling_rate=HEARD_RATE,
            return_tensors="pt",
            padding="longest",
            pad_to_multiple_of=self.frames_per_token * hop,
        )["input_features"]
        weight = self.encoder.conv1.weight
        is_sound = hop * torch.arange(features.shape[2])[None] < len(pcm)
        tokens = self.encoder(features.to(weight), is_sound.to(weight.device))
        return tokens[0].cpu().numpy()[is_sound[0, :: self.frames_per_token].numpy()]


def load_tokenizer(checkpoint: Path, num_codes: int, device: str = "cpu") -> SpeechTokenizer | None:
    """Load the speech tokenizer of a checkpoint as `read_tokenizer` does, or return None if it has none.

    Args:
        num_codes: Number of speech tokens in the language model's vocabulary.
    """
    folder = checkpoint / FOLDER
    return read_tokenizer(folder, num_codes).to(device) if folder.is_dir() else None


def read_tokenizer(folder: Path, num_codes: int) -> SpeechTokenizer:
    """Load the speech tokenizer in `folder`; raise CheckpointError if it is invalid or has not `num_codes` codes."""
    try:
        config = WhisperVqConfig.from_record(json_object(folder / CONFIG))
        record = json_object(folder / FEATURES)
        features = WhisperFeatureExtractor(**{name: record[name] for name in NUMBERS if name in record})
        published = _published(folder)
    except UNREADABLE as error:
        raise CheckpointError(f"{folder}: expected GLM-4-Voice's tokenizer, got {error!r}") from error
    sizes = (features.sampling_rate, features.feature_size, config.codes)
    if sizes != (HEARD_RATE, config.mels, num_codes):
        raise CheckpointError(
            f"{folder}: expected {HEARD_RATE} Hz, {config.mels} mel bands and {num_codes} codes, got {sizes}"
        )
    tokenizer = SpeechTokenizer(config, features)
    load_strictly(tokenizer.encoder, in_float32(_served(published, config), folder), folder)
    return tokenizer.eval().requires_grad_(False)


def _published(folder: Path) -> dict[str, Tensor]:
    """Return the encoder's tensors by unprefixed name; raise FileNotFoundError if there are none."""
    places = dict[str, Path]()
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(regular_file(path), framework="pt") as file:
            places |= dict.fromkeys(list(file.keys()), path)
    prefix = next(start for start in (*PREFIXES, None) if start is None or f"{start}conv1.weight" in places)
    if prefix is None:
        raise FileNotFoundError(f"{folder}: no model*.safetensors has a tensor conv1.weight")
    tensors = dict[str, Tensor]()
    for path in sorted(set(places.values())):
        with safe_open(path, framework="pt") as file:
            names = [name for name, file_path in places.items() if file_path == path and name.startswith(prefix)]
            tensors |= {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return tensors


def _served(published: dict[str, Tensor], config: WhisperVqConfig) -> dict[str, Tensor]:
    """Return the tensors without those of layers after the quantiser and those used only in training."""
    late = tuple(f"layers.{number}." for number in range(config.quantized_after, 100))
    return {name: tensor for name, tensor in published.items() if not name.startswith(NOT_SERVED + late)}
