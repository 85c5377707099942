"""CTC models with the wav2vec2 layout, which compute word times in recordings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from stretto.aligning.align import Alphabet, CannotAlign, TimedWord, times
from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import json_object, released_file
from stretto.weights.pretrained import load_config, load_model

RATE = 16_000  # sample rate in Hz
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
VOCABULARY = "vocab.json"
PREPROCESSOR = "preprocessor_config.json"
FILES = (CONFIG, VOCABULARY, PREPROCESSOR, WEIGHTS)
BLANK = "<blank>"
# far above published models: 48 layers, width 1280, feed-forward width 5120
MAX_LAYERS = 100
MAX_WIDTH = 1 << 15
VARIANCE = 1e-7  # added when normalising, as in the training of these models


def read_alphabet(folder: Path) -> Alphabet:
    """Return the labels of the model in `folder`; raise CheckpointError if its files do not have the wav2vec2 layout.

    The blank is `<blank>` or, if there is none, the padding token.
    """
    path = folder / VOCABULARY
    config = json_object(folder / CONFIG)
    labels = json_object(path)
    size = config.get("vocab_size")
    if any(isinstance(label_id, dict) for label_id in labels.values()):
        raise CheckpointError(f"{path}: expected the labels of one alphabet, got alphabets by language")
    ids = list(labels.values())
    odd = [
        label_id
        for label_id in ids
        if not isinstance(size, int) or type(label_id) is not int or not 0 <= label_id < size
    ]
    if odd or not isinstance(size, int):
        raise CheckpointError(f"{path}: expected ids below vocab_size {shown(size)}, got {shown(odd)}")
    if len(set(ids)) != len(ids):
        raise CheckpointError(f"{path}: expected a different id for each label, got {len(set(ids))} for {len(ids)}")
    blank = labels.get(BLANK, config.get("pad_token_id"))
    if type(blank) is not int or not 0 <= blank < size:
        raise CheckpointError(f"{folder / CONFIG}: pad_token_id: expected the id of the blank, got {shown(blank)}")
    letters = {label: label_id for label, label_id in labels.items() if len(label) == 1}
    if sum(label.isalpha() and label_id != blank for label, label_id in letters.items()) == 0:
        raise CheckpointError(f"{path}: expected labels of single letters, got none")
    return Alphabet(letters, blank)


def check_config(folder: Path) -> bool:
    """Return True if the model's input is normalised; raise CheckpointError if a file is missing or unsuitable."""
    for name in FILES:
        released_file(folder, name)
    path = folder / CONFIG
    record = json_object(folder / CONFIG)
    if record.get("adapter_attn_dim") is not None:
        got = shown(record["adapter_attn_dim"])
        raise CheckpointError(f"{path}: adapter_attn_dim: expected none (adapters are not supported), got {got}")
    limits = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), MAX_WIDTH)
    for name, most in (limits | {"num_hidden_layers": MAX_LAYERS}).items():
        value = record.get(name, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise CheckpointError(f"{path}: {name}: expected an integer in [1, {most}], got {shown(value)}")
    config: Any = load_config(Wav2Vec2Config, folder)
    if config.inputs_to_logits_ratio > RATE:
        raise CheckpointError(f"{path}: conv_stride: expected frames of at most 1 s, got {shown(config.conv_stride)}")
    path = folder / PREPROCESSOR
    record = json_object(path)
    if record.get("sampling_rate", RATE) != RATE:
        raise CheckpointError(f"{path}: sampling_rate: expected {RATE}, got {shown(record['sampling_rate'])}")
    normalizes = record.get("do_normalize", True)
    if not isinstance(normalizes, bool):
        raise CheckpointError(f"{path}: do_normalize: expected true or false, got {shown(normalizes)}")
    return normalizes


class Aligner:
    """CTC model that computes word times."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self._normalizes = check_config(folder)
        self.alphabet = read_alphabet(folder)
        model: Any
        model, _ = load_model(Wav2Vec2ForCTC, folder)
        self._model = model.to(device)
        self._device = device

    def log_p(self, pcm: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log probabilities of the labels, float32 [T, C], for samples at RATE, float32 [n].

        Recordings are not batched, because the first norm in base models covers all frames of a recording.

        Raises:
            CannotAlign: If the recording is shorter than one frame, or the model overflows.
        """
        num_frames = int(self._model._get_feat_extract_output_lengths(torch.tensor(len(pcm))))
        if num_frames < 1:
            raise CannotAlign(f"expected at least one frame of samples, got {len(pcm)} samples")
        if self._normalizes:
            pcm = (pcm - pcm.mean()) / np.sqrt(pcm.var() + VARIANCE)
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(pcm.astype(np.float32))[None].to(self._device)).logits[0]
            log_p: NDArray[np.float32] = logits.float().log_softmax(-1).cpu().numpy()
        if np.isnan(log_p).any():
            raise CannotAlign("expected finite outputs of the model, got NaN")
        return log_p

    def times(self, pcm: NDArray[np.float32], words: Sequence[str]) -> list[TimedWord]:
        """Return the start and end times of words in a recording, float32 [n] at RATE; see `align.times`."""
        return times(self.log_p(pcm), words, self.alphabet, len(pcm) / RATE)
