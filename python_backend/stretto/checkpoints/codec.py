"""The codec beside the language model: a directory as its authors publish it, or the copy in Bagpiper's file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    HiggsAudioV2TokenizerConfig,
    MimiConfig,
    MimiModel,
    PretrainedConfig,
    PreTrainedModel,
    XcodecConfig,
    XcodecModel,
)

from stretto.checkpoints import shards
from stretto.checkpoints.shards import Entry, Written
from stretto.checkpoints.tensors import Part, check, shapes_of
from stretto.codec.espnet_dac_checkpoint import read_config
from stretto.codec.glm4_voice import config as glm4_voice
from stretto.codec.published import load_config
from stretto.codec.qwen3_12hz import config as qwen3_12hz
from stretto.errors import CheckpointError
from stretto.families.base import Family

WEIGHTS = (".pt", ".pth", ".safetensors")
FILES = (".json", ".yaml", *WEIGHTS)
COPIED: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "xcodec": (XcodecConfig, XcodecModel),
    "mimi": (MimiConfig, MimiModel),
}


def check_directory(folder: Path, family: Family) -> list[Path]:
    """The codec's files; CheckpointError where they are of another codec than the family speaks."""
    if family.codec == "xcodec":
        config = load_config(XcodecConfig, folder)
        found = (config.num_quantizers, config.codebook_size)
    elif family.codec == "mimi":
        mimi = load_config(MimiConfig, folder)
        found = (mimi.num_quantizers, mimi.codebook_size)
    elif family.codec == "higgs":
        higgs = load_config(HiggsAudioV2TokenizerConfig, folder)
        found = (higgs.num_quantizers, higgs.codebook_size)
    elif family.codec == "espnet_dac":
        numbers = read_config(folder)
        found = (numbers.num_codebooks, numbers.codebook_size)
    elif family.codec == "glm4_voice":
        found = (1, glm4_voice.read_config(folder).codebook_size)
    elif family.codec == "qwen3_12hz":
        shape = qwen3_12hz.read_config(folder).decoder
        found = (shape.num_quantizers, shape.codebook_size)
    else:
        raise CheckpointError(f"{folder}: no reader for what is published of codec {family.codec!r}")
    expected = (family.num_codebooks, family.layout.codebook_size)
    if found != expected:
        raise CheckpointError(f"{folder}: expected {expected[0]} codebooks of {expected[1]} codes, got {found}")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in FILES)
    if not any(path.suffix in WEIGHTS for path in files):
        known = f"{', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}"
        raise CheckpointError(f"{folder}: expected weights ({known}) beside the codec's numbers, got none")
    return files


@dataclass(frozen=True)
class Copy:
    """The copy of X-codec or Mimi, to be written as transformers writes it. record: its config.json."""

    record: dict[str, Any]
    entries: list[Entry]

    @classmethod
    def of(
        cls, family: Family, folder: Path | None, release: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str
    ) -> "Copy":
        """The tensors under `prefix`; of the numbers in `folder`, or of hf-audio/xcodec-hubert-general and, of Mimi, of
        `codec_config` in what the release says of itself."""
        if family.codec not in COPIED:
            raise CheckpointError(f"{family.name}: expected a copy of {', '.join(COPIED)}, got {family.codec}")
        config_class, model_class = COPIED[family.codec]
        numbers = dict(release.get("codec_config", {}))
        config = load_config(config_class, folder) if folder else config_class.from_dict(numbers)
        plan = {f"{prefix}{name}": Part(name, shape) for name, shape in shapes_of(model_class, config).items()}
        check(plan, {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}, ())
        entries = [
            Entry(part.name, tensors[name].dtype, part.stored, partial(tensors.__getitem__, name))
            for name, part in plan.items()
        ]
        return cls({**config.to_dict(), "architectures": [model_class.__name__]}, entries)

    def write(self, folder: Path, progress: shards.Progress) -> list[Written]:
        """`config.json` and `model.safetensors`."""
        files = [shards.write_json(folder / "config.json", self.record)]
        files.append(shards.write_file(folder / "model.safetensors", self.entries, progress))
        return [replace(file, name=f"codec/{file.name}") for file in files]
