"""Interface between `stretto convert` and the `convert.py` of a family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from stretto.families.registry import DRAWN
from stretto.weights.tensors import Entry, Plan, Progress, Written

AUDIO_TOKENIZER = "ssl_tokenizer"  # folder of a checkpoint


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


@dataclass(frozen=True)
class Contents:
    """Contents of a release's files; tensors stay in their files until they are read.

    Attributes:
        config: config.yaml or config.json.
        tensors: Published tensors by name.
        tokenizer: Tokenizer of text.
        backbone: Hyperparameters of the backbone.
        dtype: dtype of the tensors to write.
    """

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    backbone: dict[str, Any]
    dtype: str


@dataclass(frozen=True)
class Network:
    """Further network in a release, written into a folder of the checkpoint.

    Attributes:
        folder: Name of the folder.
        record: Its `config.json`.
        plan: Tensors to write, by published name.
        tensors: Source of the tensors; None for those of the release.
    """

    folder: str
    record: dict[str, Any]
    plan: Plan
    tensors: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Converted:
    """Checkpoint of a release.

    Attributes:
        record: config.json.
        plan: Tensors to write, by published name.
        dropped: Names, or prefixes of names, of tensors that are not used.
        folded: Names of tensors that are merged into others.
        networks: Networks that are written to folders of their own.
    """

    record: dict[str, Any]
    plan: Plan
    dropped: tuple[str, ...]
    folded: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()


class AudioTokenizer(Protocol):
    """Audio tokenizer to be written to the checkpoint's folder for it.

    Attributes:
        entries: Tensors to be converted.
        dropped: Shapes of published tensors that are not used, by name.
    """

    @property
    def entries(self) -> Sequence[Entry]: ...

    @property
    def dropped(self) -> dict[str, list[int]]: ...

    def write(self, folder: Path, progress: Progress) -> list[Written]:
        """Write the files into `folder`."""
        ...


class Published(Protocol):
    """A family's module for conversion.

    It may also define:

        IS_BARE         True if releases have no config, and any kind of tokenizer, because the family generates no text
        MARKS           descriptions of its releases, for error messages, by the name of a tensor

    Attributes:
        BACKBONE_TAG: Key of config.yaml that names the backbone; None if config.json itself has the hyperparameters.
        EMBEDDINGS: Published name of the embedding table.
        CODEC: Prefix of the names of the codec's copy in the file; empty if there is none.
        GENERATION: Fields of `speech_sampling` by keys of generation_config.json; empty if releases have no such file.
        SSL_TOKENIZER: Class that converts the folder of `--ssl-tokenizer`, by `of(folder, num_codes)`. A family without
            this attribute refuses the option.
    """

    BACKBONE_TAG: str | None
    EMBEDDINGS: str
    CODEC: str
    GENERATION: Mapping[str, tuple[str, ...]]

    def trained_dtype(self, config: Mapping[str, Any]) -> str | None:
        """Return the dtype that the model was trained in; None if the config does not contain it."""
        ...

    def notes(self, config: Mapping[str, Any], embeddings: Tensor, family: str) -> list[str]:
        """Return findings about the files that an operator may want to know."""
        ...

    def convert(self, release: Release, contents: Contents) -> Converted:
        """Return the checkpoint; CheckpointError names the parts that do not fit."""
        ...


def prefixed(prefix: str, segment: str) -> dict[str, tuple[str, ...]]:
    """Return the fields of a segment for keys that begin with `prefix`: temperature, top-k, top-p, sampling switch."""
    names: dict[str, tuple[str, ...]] = {f"{prefix}{name}": (f"{segment}.{name}",) for name in DRAWN}
    return names | {f"{prefix}do_sample": (f"{segment}.temperature",)}


# Keys of transformers, for the audio segment.
AUDIO = prefixed("", "audio") | {"min_p": ("min_p",), "repetition_penalty": ("repetition_penalty",)}
