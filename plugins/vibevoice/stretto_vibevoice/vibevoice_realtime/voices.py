"""Voices of VibeVoice Realtime: keys and values of the language models, in the authors' format or as safetensors.

A file of the authors (`NAME.pt`, https://github.com/microsoft/VibeVoice/tree/main/demo/voices/streaming_model) is a
pickle of transformers' outputs. It is read without executing its code: stubs replace the two classes that it names, and
everything but tensors and plain values is refused. Programs for MLX publish the same tensors as safetensors.

    lm, tts_lm          keys and values [1, K, n, D] of each layer of the text and the speech model
    neg_tts_lm          those of the unconditional request's first row, and its hidden state [1, 1, H]
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import BOUNDED, is_bounded
from stretto.untrusted_files import regular_file, released_file, released_folder
from stretto.weights.loading import is_plain, open_tensors, read_pickled
from stretto_vibevoice.vibevoice_realtime.family import MAX_VOICE_ROWS, MAX_VOICES

FOLDER = "voices"
SUFFIXES = (".pt", ".safetensors")
DEFAULT = "en-carter_man"  # the authors' default, if it is there
NAME = re.compile("[A-Za-z0-9_-]{1,64}")
MAX_FILE_BYTES = 256 << 20  # published files have 2 to 5 MB
TEXT = "lm"
SPEECH = "tts_lm"
FREE = "neg_tts_lm"
STATE = "last_hidden_state"


class _Cache:
    """Stub for transformers' `DynamicCache`, used while a file is read."""


def _output(*fields: object) -> dict[str, object]:
    """Return an empty dictionary as a stub for transformers' `BaseModelOutputWithPast`. Torch then sets its items."""
    return OrderedDict()


STUBS: Any = [
    (_output, "transformers.modeling_outputs.BaseModelOutputWithPast"),
    (_Cache, "transformers.cache_utils.DynamicCache"),
]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a release: K key and value heads of width D, and models of width H."""

    num_text_layers: int
    num_layers: int
    num_kv_heads: int
    size: int
    width: int


@dataclass(frozen=True)
class VoiceStates:
    """Tensors of a voice.

    Attributes:
        texts: Keys and values of the text model, float32 [layers, r, 2, K, D].
        speech: Keys and values of the speech model, float32 [layers, n + 1, 2, K * D]; those of the unconditional
            request's first row come last.
        state: Hidden state of that row, float32 [H].
    """

    texts: Tensor
    speech: Tensor
    state: Tensor


def read_voices(root: Path, sizes: Sizes) -> dict[str, VoiceStates]:
    """Return the voices in the folder `voices` of a release by name, in lower case. The first one is the default."""
    folder = released_folder(root, FOLDER)
    names = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES) if folder.is_dir() else []
    if not 1 <= len(names) <= MAX_VOICES:
        expected = f"1 to {MAX_VOICES} voices, NAME.pt or NAME.safetensors"
        raise CheckpointError(f"{folder}: expected {expected}, got {len(names)}")
    voices = dict[str, VoiceStates]()
    for file in sorted(names, key=lambda name: (not name.lower().startswith(f"{DEFAULT}."), name)):
        stem = file.rpartition(".")[0]
        if not NAME.fullmatch(stem) or stem.lower() in voices:
            expected = "different names of letters, digits, - and _"
            raise CheckpointError(f"{folder}: expected {expected}, got {shown(file)}")
        voices[stem.lower()] = read_voice(released_file(root, f"{FOLDER}/{file}"), sizes)
    return voices


def read_voice(path: Path, sizes: Sizes) -> VoiceStates:
    """Return the voice in a file; raise CheckpointError unless it is one of a release with these sizes."""
    tensors = _in_safetensors(path) if path.suffix == SUFFIXES[1] else dict(_in_pickle(path))
    text = _cache(path, tensors, TEXT, sizes.num_text_layers, sizes)
    speech = _cache(path, tensors, SPEECH, sizes.num_layers, sizes)
    free = _cache(path, tensors, FREE, sizes.num_layers, sizes)
    if free.shape[1] != 1:
        raise CheckpointError(f"{path}: {FREE}: expected 1 row, got {free.shape[1]}")
    state = _tensor(path, tensors, f"{FREE}_hidden", (1, 1, sizes.width))
    return VoiceStates(text, torch.cat([speech, free], 1).flatten(3), state[0, 0])


def _cache(path: Path, tensors: Mapping[str, Tensor], network: str, num_layers: int, sizes: Sizes) -> Tensor:
    """Return the keys and values of a network, float32 [layers, n, 2, K, D]."""
    first = tensors.get(f"{network}_key_0")
    rows = first.shape[2] if first is not None and first.ndim == 4 else 0
    if not 1 <= rows <= MAX_VOICE_ROWS:
        got = "none" if first is None else list(first.shape)
        expected = f"[1, {sizes.num_kv_heads}, n, {sizes.size}] with n in [1, {MAX_VOICE_ROWS}]"
        raise CheckpointError(f"{path}: {network}_key_0: expected {expected}, got {got}")
    shape = (1, sizes.num_kv_heads, rows, sizes.size)
    layers = [
        torch.stack([_tensor(path, tensors, f"{network}_{half}_{number}", shape)[0] for half in ("key", "value")])
        for number in range(num_layers)
    ]
    if f"{network}_key_{num_layers}" in tensors:
        raise CheckpointError(f"{path}: {network}: expected {num_layers} layers, got more")
    return torch.stack(layers).permute(0, 3, 1, 2, 4).contiguous()


def _tensor(path: Path, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of a voice, float32; raise CheckpointError if it is missing or invalid."""
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape:
        got = "none" if tensor is None else list(tensor.shape)
        raise CheckpointError(f"{path}: {name}: expected {list(shape)}, got {got}")
    if not is_plain(tensor) or not tensor.is_floating_point() or not is_bounded(tensor):
        raise CheckpointError(f"{path}: {name}: expected floating-point {BOUNDED}, got others")
    return tensor.float()


def _in_safetensors(path: Path) -> Mapping[str, Tensor]:
    return open_tensors(regular_file(path, MAX_FILE_BYTES))


def _in_pickle(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a file of the authors under the names that they have in safetensors."""
    regular_file(path, MAX_FILE_BYTES)
    with torch.serialization.safe_globals(STUBS):
        stored = read_pickled(path, "a voice of VibeVoice Realtime")
    for network in (TEXT, SPEECH, FREE):
        output = stored.get(network) if isinstance(stored, dict) else None
        cache = output.get("past_key_values") if isinstance(output, dict) else None
        layers = vars(cache) if isinstance(cache, _Cache) else {}
        for half in ("key", "value"):
            tensors = layers.get(f"{half}_cache")
            for number, tensor in enumerate(tensors if isinstance(tensors, list) else ()):
                if not isinstance(tensor, Tensor):
                    raise CheckpointError(f"{path}: {network}: expected a list of tensors, got {shown(tensor)}")
                yield f"{network}_{half}_{number}", tensor
        state = output.get(STATE) if isinstance(output, dict) else None
        if isinstance(state, Tensor):
            yield f"{network}_hidden", state
