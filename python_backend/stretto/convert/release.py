"""Reading of a release: everything except the values of its tensors."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from stretto.convert.tokenizer import read_tokenizer
from stretto.errors import CheckpointError, shown
from stretto.families.base import Family
from stretto.families.conversion import AudioTokenizer, Contents, Published, Release
from stretto.families.defaults import with_defaults
from stretto.families.registry import plugin, plugins
from stretto.untrusted_files import entry, json_object, read_json, released_file, yaml_mapping
from stretto.weights.backbones import read_backbone
from stretto.weights.loading import open_tensors


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
    config, tensors = _config(release), open_tensors(release.model)
    tokenizer = read_tokenizer(release.tokenizer, spells_bytes=not is_bare(release))
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


GENERATION_FILE = "generation_config.json"


def read_defaults(
    release: Release, family: Family, names: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, Any], list[str]]:
    """Return `speech_sampling` from a release's generation_config.json, and notes on the values used.

    Lengths are ignored: a family has its own, and a request may set them.

    Args:
        release: The release; the file is next to its config, or in the folder of its weights.
        family: Family with the defaults of its authors' code.
        names: Fields of `speech_sampling` by keys of the file; a `…do_sample` that is false makes a segment greedy.

    Raises:
        CheckpointError: If a value is invalid; the message names its key.
    """
    path = _place(release) if names else None
    if path is None:
        return {}, []
    found = json_object(path)
    taken: dict[str, Any] = {}
    keys = [name for name in names if found.get(name) is not None]
    if family.penalized is None:
        keys = [name for name in keys if "repetition_penalty" not in names[name]]
    is_switch = {name: name.endswith(("do_sample", "dosample")) for name in keys}
    for name in sorted(keys, key=lambda name: is_switch[name]):  # switches last, because they override the temperature
        value = found[name]
        if is_switch[name]:
            if not isinstance(value, bool):
                raise CheckpointError(f"{path}: {name}: expected true or false, got {shown(value)}")
            if value:
                continue
            value = 0.0
        for field in names[name]:
            segment, _, last = field.rpartition(".")
            part = {last: value}
            try:
                with_defaults(family, {segment: part} if segment else part)
            except CheckpointError as error:
                expected = str(error).partition(": expected ")[2]
                raise CheckpointError(f"{path}: {name}: expected {expected}") from error
            (taken.setdefault(segment, {}) if segment else taken).update(part)
    said = ", ".join(f"{name} {found[name]}" for name in keys)
    return taken, [f"defaults from {GENERATION_FILE}: {said}"] if keys else []


def _place(release: Release) -> Path | None:
    """Return the path of the file; None if the release has none."""
    folders = [release.model if release.model.is_dir() else release.model.parent]
    if release.config is not None:
        folders.insert(0, release.config.parent)
    return next(
        (released_file(folder, GENERATION_FILE) for folder in folders if (folder / GENERATION_FILE).exists()), None
    )
