"""Codecs by name: modules that installed packages register (entry points of the group `stretto.codecs`).

A codec's module has `load(directory, device)`, which returns a `Codec` or raises CheckpointError. Optional attributes:

    published_shape(directory) -> (K, C)    for `stretto convert --codec`: numbers of codebooks and of codes in each
    TRANSFORMERS = config class, model class    for `stretto convert --codec-from-model`
    MARKS = {tensor: description}               names of tensors that only this codec has, for error messages about a
                                                file that contains this codec instead of the expected model
"""

import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from stretto.codecs.base import Codec
from stretto.errors import CheckpointError
from stretto.plugins import CODECS, Installed, find, installed, names

logger = logging.getLogger(__name__)


def codec_module(name: str) -> Any:
    """Return the module of the codec called `name`.

    Raises:
        KeyError: If the name is unknown; the message lists the installed ones.
        CheckpointError: If several packages register the name, or the module cannot be imported.
    """
    found = find(CODECS, name)
    if found is None:
        raise KeyError(f"unknown codec {name!r}; installed: {names(CODECS)}")
    return _module(found)


def _module(found: Installed) -> Any:
    loaded: Any = found.load()
    if not isinstance(loaded, ModuleType) or not hasattr(loaded, "load"):
        raise CheckpointError(f"codec {found.name}: expected a module with `load` as {found.entry_point.value}")
    return loaded


def _modules() -> Iterator[tuple[str, Any]]:
    """Yield the names and modules of all installed codecs; those that cannot be imported are logged and skipped."""
    for each in installed(CODECS):
        try:
            yield each.name, _module(each)
        except CheckpointError as error:
            logger.warning("%s", error)


def codecs_in_transformers() -> list[str]:
    """Return the names of the codecs that transformers has classes for (see `TRANSFORMERS`)."""
    return [name for name, module in _modules() if hasattr(module, "TRANSFORMERS")]


def codec_marks() -> dict[str, str]:
    """Map names of tensors that only one codec has to a description of that codec (see `MARKS`)."""
    return {name: kind for _, module in _modules() for name, kind in getattr(module, "MARKS", {}).items()}


def load_codec(name: str, directory: Path, device: str = "cpu", num_codebooks: int | None = None) -> Codec:
    """Load the codec called `name`.

    Args:
        name: Name of the codec.
        directory: Folder with the weights.
        device: torch device.
        num_codebooks: Number of codebooks to use, counted from the first; None for all.

    Raises:
        KeyError: If the name is unknown; the message lists the installed ones.
        CheckpointError: If files do not match, or there are fewer codebooks.
    """
    codec: Codec = codec_module(name).load(directory, device)
    if num_codebooks is not None:
        try:
            codec.spec = codec.spec.with_codebooks(num_codebooks)
        except ValueError as error:
            raise CheckpointError(f"{directory}: {error}") from error
    return codec


def load_exported(name: str, directory: Path, device: str = "cpu", threads: int = 1) -> Codec:
    """Load the codec called `name` from its exported ONNX file.

    Args:
        name: Name of the codec.
        directory: Checkpoint folder, with the file in it or in its subfolder `codec/`.
        device: `cpu` or `cuda:<n>`.
        threads: Number of onnxruntime's threads on the CPU.

    Raises:
        KeyError: If the name is unknown; the message lists the installed ones.
        CheckpointError: If the file is missing, or contains another codec.
    """
    if find(CODECS, name) is None:
        raise KeyError(f"unknown codec {name!r}; installed: {names(CODECS)}")
    codec: Codec = import_module("stretto.codecs.onnx_runtime").load(directory, device, threads)
    if codec.spec.name != name:
        raise CheckpointError(f"{directory}: expected an exported {name}, got an exported {codec.spec.name}")
    return codec
