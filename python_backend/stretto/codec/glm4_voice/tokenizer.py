"""GLM-4-Voice's speech tokenizer, an optional part of a checkpoint: audio to tokens.

The folder `ssl_tokenizer/` contains the files published in https://huggingface.co/THUDM/glm-4-voice-tokenizer:
`config.json`, `preprocessor_config.json` and `model.safetensors`. A checkpoint without it takes audio as codes.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from stretto.codec.glm4_voice.codec import HEARD_RATE
from stretto.codec.glm4_voice.whisper_vq import HALVED, WhisperVq, WhisperVqConfig
from stretto.codec.strict_loading import UNREADABLE, in_float32, load_strictly
from stretto.errors import CheckpointError
from stretto.untrusted_files import json_object, regular_file

FOLDER, CONFIG, FEATURES = "ssl_tokenizer", "config.json", "preprocessor_config.json"
SEGMENT = 30 * HEARD_RATE  # samples
NUMBERS = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "padding_value")
PREFIXES = ("model.encoder.", "encoder.", "")
# used in training only, or after the quantiser
NOT_SERVED = ("layer_norm.", "embed_positions2.", "ema_count", "ema_weight")


class SpeechTokenizer(nn.Module):
    """Tokenizer of audio at 12.5 tokens per second."""

    def __init__(self, config: WhisperVqConfig, features: WhisperFeatureExtractor) -> None:
        super().__init__()
        self.encoder, self.features = WhisperVq(config), features
        self.frames_per_token = HALVED * config.pool

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return tokens, int64 [T], of mono `pcm`, float32 [n] at 16 kHz, T = ceil(n / 1280).

        Each 30 s are encoded separately, as by the authors. They pad the remainder to 30 s; this changes only the last
        12 ms of audio that ends with a complete token.
        """
        parts = [self._encode(pcm[at : at + SEGMENT]) for at in range(0, len(pcm), SEGMENT)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _encode(self, pcm: np.ndarray) -> np.ndarray:
        made = self.features(
            pcm,
            sampling_rate=HEARD_RATE,
            return_attention_mask=True,
            return_tensors="pt",
            padding="longest",
            pad_to_multiple_of=self.frames_per_token * self.features.hop_length,
        )
        weight = self.encoder.conv1.weight
        is_sound = made["attention_mask"].bool()
        tokens = self.encoder(made["input_features"].to(weight), is_sound.to(weight.device))
        return tokens[0].cpu().numpy()[is_sound[0, :: self.frames_per_token].numpy()]


def load_tokenizer(checkpoint: Path, num_codes: int, device: str = "cpu") -> SpeechTokenizer | None:
    """Return the tokenizer in a checkpoint folder, or None if it has none.

    Raises:
        CheckpointError: For missing, unknown or misshapen tensors, or if it does not make `num_codes` codes.
    """
    folder = checkpoint / FOLDER
    return read_tokenizer(folder, num_codes).to(device) if folder.is_dir() else None


def read_tokenizer(folder: Path, num_codes: int) -> SpeechTokenizer:
    """Return the tokenizer published in a folder; raise CheckpointError for mismatched files."""
    try:
        config = WhisperVqConfig.from_record(json_object(folder / CONFIG))
        record = json_object(folder / FEATURES)
        features = WhisperFeatureExtractor(**{name: record[name] for name in NUMBERS if name in record})
        published = _published(folder)
    except UNREADABLE as error:
        raise CheckpointError(f"{folder}: expected GLM-4-Voice's tokenizer, got {error!r}") from error
    found = (features.sampling_rate, features.feature_size, config.codes)
    if found != (HEARD_RATE, config.mels, num_codes):
        raise CheckpointError(
            f"{folder}: expected {HEARD_RATE} Hz, {config.mels} mel bands and {num_codes} codes, got {found}"
        )
    tokenizer = SpeechTokenizer(config, features)
    load_strictly(tokenizer.encoder, in_float32(_served(published, config), folder), folder)
    return tokenizer.eval().requires_grad_(False)


def _published(folder: Path) -> dict[str, Tensor]:
    """Return the encoder's tensors by their own names; raise FileNotFoundError if there are none."""
    places = dict[str, Path]()
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(regular_file(path), framework="pt") as file:
            places |= dict.fromkeys(list(file.keys()), path)
    prefix = next(each for each in (*PREFIXES, None) if each is None or f"{each}conv1.weight" in places)
    if prefix is None:
        raise FileNotFoundError(f"{folder}/model.safetensors with conv1.weight")
    tensors = dict[str, Tensor]()
    for path in sorted(set(places.values())):
        with safe_open(path, framework="pt") as file:
            names = [name for name, place in places.items() if place == path and name.startswith(prefix)]
            tensors |= {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return tensors


def _served(published: dict[str, Tensor], config: WhisperVqConfig) -> dict[str, Tensor]:
    """Keep only the layers in front of the quantiser."""
    late = tuple(f"layers.{number}." for number in range(config.quantized_after, 100))
    return {name: tensor for name, tensor in published.items() if not name.startswith(NOT_SERVED + late)}
