"""Contents of a release's files, and notes on them for the operator."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stretto.checkpoints.backbone import read_backbone
from stretto.checkpoints.published import Contents, published
from stretto.checkpoints.release import BARE, Release, Tokenizer, entry, read_json, read_tensors
from stretto.errors import CheckpointError
from stretto.untrusted_files import yaml_mapping

DTYPES = ("bfloat16", "float16", "float32")


def read_contents(release: Release) -> Contents:
    """Read everything except the tensors' values; CheckpointError if a file is invalid."""
    config, tensors = _config(release), read_tensors(release.model)
    tokenizer = Tokenizer.at(release.tokenizer, spells_bytes=release.family not in BARE)
    family = published(release)
    tag = family.BACKBONE_TAG
    backbone = config if tag is None else read_backbone(entry(config, tag), release.backbone, release.tokenizer)
    dtype = release.dtype or _known_dtype(family.trained_dtype(config), tensors)
    return Contents(config, tensors, tokenizer, backbone, dtype)


def _config(release: Release) -> dict[str, Any]:
    """Return the release's config; empty for a family without one."""
    if release.config is None:
        if release.family not in BARE:
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
        notes.append("written and served in float32; --dtype bfloat16 takes half of the memory, and less time on a GPU")
    return notes + family.notes(contents.config, table, release.family)


def _known_dtype(trained: str | None, tensors: Mapping[str, Tensor]) -> str:
    """Return the dtype that the model was trained in; if unknown, the dtype of its first stored tensor."""
    dtype = trained or str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise CheckpointError(f"trained in one of {', '.join(DTYPES)} is expected, got {dtype!r}; --dtype decides")
    return dtype
