"""Interface of a family's `convert.py`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from stretto.convert.release import Release, Tokenizer, entry, read_json, read_tensors
from stretto.errors import CheckpointError
from stretto.families.registry import plugin, plugins
from stretto.untrusted_files import yaml_mapping
from stretto.weights.backbones import read_backbone
from stretto.weights.tensors import Entry, Plan, Progress, Written

AUDIO_TOKENIZER = "ssl_tokenizer"  # folder of a checkpoint


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


def convertible() -> list[str]:
    """Return the families that `stretto convert` knows, as named on the command line."""
    return [each.name.replace("_", "-") for each in plugins() if each.convert is not None]


def published(release: Release) -> Published:
    """Return the module for conversion of a release's family."""
    found = plugin(release.family_name)
    if found is None or found.convert is None:
        raise CheckpointError(f"{release.family}: expected a family that can be converted: {', '.join(convertible())}")
    return cast(Published, import_module(found.convert))


def is_bare(release: Release) -> bool:
    """Return True if the family's releases have no config, and any kind of tokenizer."""
    return bool(getattr(published(release), "IS_BARE", False))


def audio_tokenizer_of(family: str) -> Callable[[Path, int], AudioTokenizer] | None:
    """Return the function that converts a family's audio tokenizer; None if the family has none."""
    found = plugin(family)
    if found is None or found.convert is None:
        return None
    kind = getattr(import_module(found.convert), "SSL_TOKENIZER", None)
    return None if kind is None else kind.from_folder


def marks() -> dict[str, str]:
    """Return descriptions of releases by the name of a tensor that only they have."""
    converters = [import_module(each.convert) for each in plugins() if each.convert is not None]
    return {name: kind for each in converters for name, kind in getattr(each, "MARKS", {}).items()}


DTYPES = ("bfloat16", "float16", "float32")


def read_contents(release: Release) -> Contents:
    """Read everything except the tensors' values; CheckpointError if a file is invalid."""
    config, tensors = _config(release), read_tensors(release.model)
    tokenizer = Tokenizer.at(release.tokenizer, spells_bytes=not is_bare(release))
    family = published(release)
    tag = family.BACKBONE_TAG
    backbone = config if tag is None else read_backbone(entry(config, tag), release.backbone, release.tokenizer)
    dtype = release.dtype or _known_dtype(family.trained_dtype(config), tensors)
    return Contents(config, tensors, tokenizer, backbone, dtype)


def _config(release: Release) -> dict[str, Any]:
    """Return the release's config; empty for a family without one."""
    if release.config is None:
        if not is_bare(release):
            raise CheckpointError(f"--config: expected the config.yaml or config.json of {release.family}, got none")
        return {}
    read = read_json if release.config.suffix == ".json" else yaml_mapping  # YAML would read 1e-05 as a string
    return read(release.config)


def notes_on(contents: Contents, release: Release) -> list[str]:
    """Return findings that an operator may want to know."""
    family = published(release)
    table = contents.tensors[family.EMBEDDINGS]
    stored = str(table.dtype).removeprefix("torch.")
    notes = [f"stored in {stored}, written in {contents.dtype}"] if stored != contents.dtype else []
    if contents.dtype == "float32" and release.dtype is None:
        notes.append("written and served in float32; --dtype bfloat16 takes half the memory, and less time on a GPU")
    return notes + family.notes(contents.config, table, release.family)


def _known_dtype(trained: str | None, tensors: Mapping[str, Tensor]) -> str:
    """Return the dtype that the model was trained in; if unknown, the dtype of its first stored tensor."""
    dtype = trained or str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"expected a model trained in one of {', '.join(DTYPES)}, got {dtype!r}; choose with --dtype"
        )
    return dtype
