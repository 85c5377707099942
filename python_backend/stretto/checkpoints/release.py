"""What a release consists of, read without a copy of it: the tensors stay in their file until they are written."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from stretto.checkpoints.byte_level_bpe import read_tokenizer
from stretto.codec.strict_loading import UNREADABLE, read_pickled
from stretto.errors import CheckpointError
from stretto.families.registry import config_at, json_object
from stretto.families.tokenizer import FILE, TextTokenizer

FAMILIES = (
    "bagpiper",
    "opuslm",
    "opuslm-dialogue",
    "vita-audio",
    "csm",
    "qwen3-tts",
    "qwen3-omni-talker",
    "higgs-audio-v2",
    "chatterbox",
    "valle",
)
BARE = ("chatterbox",)  # whose releases have no config, and a tokenizer of any kind: they write no text
INDEX, SUFFIX = ".safetensors.index.json", ".safetensors"


@dataclass(frozen=True)
class Release:
    """What is to be converted. backbone, audio_config: where the numbers lie that the release only names.

    audio: what the operator says of the audio tower. dtype: None means what the release was trained in.
    keeps_codec: write the codec from the copy in the file; `codec` then only says its numbers. ssl_tokenizer: the
    directory of what a family hears samples with: XEUS for OpusLM, GLM-4-Voice's tokenizer for VITA-Audio.
    """

    family: str
    model: Path
    config: Path | None
    tokenizer: Path
    codec: Path | None = None
    ssl_tokenizer: Path | None = None
    keeps_codec: bool = False
    backbone: Path | None = None
    audio_config: Path | None = None
    audio: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None

    @property
    def config_folder(self) -> Path:
        """Where its config lies, of a family whose releases have one."""
        assert self.config is not None, self.family
        return self.config.parent

    @property
    def family_name(self) -> str:
        """The family as a checkpoint's config.json names it."""
        return self.family.replace("-", "_")


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files by name, read when they are asked for."""

    def __init__(self, paths: list[Path]):
        files = [safe_open(path, framework="pt") for path in paths]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def safetensors_files(path: Path) -> list[Path] | None:
    """The safetensors files of a directory, those that an index names, or `path` itself; None where it is no such."""
    if path.is_dir():
        return sorted(path.glob("*.safetensors"))
    if not path.name.endswith(INDEX):
        return [path] if path.suffix == SUFFIX else None
    names = json_object(path).get("weight_map", {})
    return [path.parent / name for name in sorted(set(names.values()))]


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of `model.pt` ({"module": …}), `model.pth` or `2epoch.pth`, or of safetensors files: those of a
    directory, of an index, or one.

    CheckpointError where the file is missing, holds anything but tensors, or is of a kind that cannot stay in its file.
    """
    try:
        files = safetensors_files(path)
        stored = read_pickled(path, stays_in_file=True) if files is None else StoredTensors(files)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: expected tensors, got {error!r}") from error
    if isinstance(stored, StoredTensors) and stored:
        return stored
    tensors = stored.get("module", stored) if isinstance(stored, dict) else {}
    if not isinstance(tensors, dict):
        tensors = {}
    odd = sorted(
        str(name) for name, tensor in tensors.items() if not (isinstance(name, str) and torch.is_tensor(tensor))
    )
    if odd or not tensors:
        raise CheckpointError(f"{path}: expected tensors by name, or under 'module'; got {odd[:8] or 'none'}")
    return tensors


def read_yaml(path: Path) -> dict[str, Any]:
    """A release's `config.yaml`."""
    try:
        record = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: expected YAML, got {error!r}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: expected a mapping, got {type(record).__name__}")
    return record


def read_json(path: Path) -> dict[str, Any]:
    """A config.json, or the one in a directory."""
    return config_at(path) if path.is_dir() else json_object(path)


def entry(record: Mapping[str, Any], dotted: str) -> Any:
    """What lies in a nested record under `a.b.c`; CheckpointError names the first key that is not there."""
    value: Any = record
    for depth, key in enumerate(dotted.split(".")):
        if not isinstance(value, Mapping) or key not in value:
            raise CheckpointError(f"config.yaml: {'.'.join(dotted.split('.')[: depth + 1])} is missing")
        value = value[key]
    return value


def optional_entry(record: Mapping[str, Any], dotted: str) -> Any:
    """What lies in a nested record under `a.b.c`; None where nothing does."""
    with suppress(CheckpointError):
        return entry(record, dotted)
    return None


@dataclass(frozen=True)
class Tokenizer:
    """A public tokenizer's files. size: one more than its highest id. tokens: how each id is spelled.

    made: a tokenizer.json, where the files have none; it is to be written beside them.
    """

    folder: Path
    size: int
    tokens: Mapping[int, str] = field(default_factory=dict)
    made: Mapping[str, Any] | None = None

    @classmethod
    def at(cls, folder: Path, spells_bytes: bool = True) -> "Tokenizer":
        """Reads `tokenizer.json`, or makes it of vocab.json and merges.txt; CheckpointError where there is neither, or
        one that the server could not use. spells_bytes: as `TextTokenizer`'s."""
        made = None
        if (folder / FILE).exists() or not (folder / "vocab.json").exists():
            tokens = TextTokenizer.at(folder, spells_bytes).tokens
        else:
            tokenizer = read_tokenizer(folder)
            tokens, made = TextTokenizer(tokenizer).tokens, json.loads(tokenizer.to_str())
        if not tokens:
            raise CheckpointError(f"{folder}: expected a tokenizer with tokens, got none")
        return cls(folder, 1 + max(tokens), tokens, made)

    @property
    def files(self) -> list[Path]:
        """What a tokenizer consists of, and nothing else of a repository that lies beside it."""
        names = ("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "chat_template")
        return sorted(path for path in self.folder.iterdir() if path.is_file() and path.name.startswith(names))
