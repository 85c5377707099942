"""Files of a release, read without copying: tensors stay in their files until they are written."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from stretto.convert.byte_level_bpe import read_tokenizer
from stretto.errors import CheckpointError, shown
from stretto.families.tokenizer import FILE, TextTokenizer
from stretto.untrusted_files import json_object, regular_file, released_file
from stretto.weights.loading import UNREADABLE, read_pickled

INDEX, SUFFIX = ".safetensors.index.json", ".safetensors"
# Prefixes of a tokenizer's file names. Its folder may be a whole repository.
TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "chat_template")
WHOLE, SHARDS = "model.safetensors", f"model{INDEX}"  # names used by transformers, in order of preference


@dataclass(frozen=True)
class Release:
    """Release to convert.

    Attributes:
        family: Family as named on the command line.
        model: Weights: a file, a folder or an index.
        config: config.yaml or config.json; None for a family without one.
        tokenizer: Folder of the tokenizer of text.
        codec: Folder of the codec's release.
        ssl_tokenizer: Folder of the audio tokenizer's release.
        keeps_codec: True to write the codec from the copy in the weights; `codec` then only provides its config.
        backbone: config.json of the backbone, if the release only names it.
        audio_config: config.json of the audio tower, if the release only names it.
        audio: Options of the audio tower from the command line.
        dtype: dtype to write; None for that of the training.
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
        """Folder of the config, for a family whose releases have one."""
        assert self.config is not None, self.family
        return self.config.parent

    @property
    def family_name(self) -> str:
        """Name of the family in a checkpoint's config.json."""
        return self.family.replace("-", "_")


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of safetensors files by name, read on access."""

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
    """Return the safetensors files that `path` refers to; None if it is a file of another kind.

    A folder may hold the same weights twice, so files are chosen as in transformers: the value of
    `transformers_weights` in `config.json`, `model.safetensors`, or the shards of `model.safetensors.index.json`.
    Without any of these, all safetensors files of the folder are returned. An index refers to the files that it names.

    Raises:
        CheckpointError: If a file is not regular, an index names a file outside its folder, or a link in the folder
            leads out of the release.
    """
    if path.is_dir():
        config = path / "config.json"
        chosen = json_object(config).get("transformers_weights") if config.exists() else None
        if chosen is not None:
            return _named_files(released_file(path, chosen))
        for name in (WHOLE, SHARDS):
            if os.path.lexists(path / name):
                return _named_files(released_file(path, name))
        return [released_file(path, each.name) for each in sorted(path.glob(f"*{SUFFIX}"))]
    return _named_files(regular_file(path))


def _named_files(path: Path) -> list[Path] | None:
    """Return the files of an index, or `path` itself if it is a safetensors file; None for another kind of file."""
    if not path.name.endswith(INDEX):
        return [path] if path.suffix == SUFFIX else None
    names = json_object(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{path}: weight_map: expected file names by tensor, got {shown(names)}")
    return [released_file(path.parent, name) for name in sorted(set(names.values()))]


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors in `path`.

    `path` is `model.pt` ({"module": …}), `model.pth` or `2epoch.pth`, a safetensors file, its index, or a folder of
    such files.

    Raises:
        CheckpointError: If the file is missing, holds anything but tensors, or cannot be memory-mapped.
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the contents of a config.json, or of the one in a folder."""
    return json_object(path / "config.json" if path.is_dir() else path)


def entry(record: Mapping[str, Any], dotted: str) -> Any:
    """Return the value of a nested record at `a.b.c`; CheckpointError names the first missing key."""
    value: Any = record
    for depth, key in enumerate(dotted.split(".")):
        if not isinstance(value, Mapping) or key not in value:
            raise CheckpointError(f"config.yaml: {'.'.join(dotted.split('.')[: depth + 1])} is missing")
        value = value[key]
    return value


def optional_entry(record: Mapping[str, Any], dotted: str) -> Any:
    """Return the value of a nested record at `a.b.c`; None if it is missing."""
    with suppress(CheckpointError):
        return entry(record, dotted)
    return None


@dataclass(frozen=True)
class Tokenizer:
    """Files of a public tokenizer, to be copied.

    Attributes:
        folder: Folder of the tokenizer.
        size: Highest id plus one.
        tokens: Spelling of each id.
        made: tokenizer.json to be written with the files, if they have none.
        files: Files to copy.
    """

    folder: Path
    size: int
    tokens: Mapping[int, str] = field(default_factory=dict)
    made: Mapping[str, Any] | None = None
    files: tuple[Path, ...] = ()

    @classmethod
    def at(cls, folder: Path, spells_bytes: bool = True) -> "Tokenizer":
        """Read `tokenizer.json`, or build it from vocab.json and merges.txt.

        Args:
            folder: Folder of the tokenizer.
            spells_bytes: See `TextTokenizer`.

        Raises:
            CheckpointError: If there is no tokenizer, or one that the server cannot use.
        """
        made = None
        if (folder / FILE).exists() or not (folder / "vocab.json").exists():
            tokens = TextTokenizer.at(folder, spells_bytes).tokens
        else:
            tokenizer = read_tokenizer(folder)
            tokens, made = TextTokenizer(tokenizer).tokens, json.loads(tokenizer.to_str())
        if not tokens:
            raise CheckpointError(f"{folder}: expected a tokenizer with tokens, got none")
        found = sorted(path.name for path in folder.iterdir() if path.name.startswith(TOKENIZER) and not path.is_dir())
        return cls(folder, 1 + max(tokens), tokens, made, tuple(released_file(folder, name) for name in found))
