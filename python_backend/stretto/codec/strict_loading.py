"""Tensors out of files, and into a module whose names they have: none may be missing, unknown, of another shape, or
no finite numbers."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stretto.errors import CheckpointError
from stretto.untrusted_files import regular_file

NAMED = 12  # of so many tensors that do not fit, the names are said
# What reading tensors raises where a file holds none: `torch.load` lets out whatever its unpickler stumbles over.
UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    MemoryError,
    OverflowError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    pickle.PickleError,
    SafetensorError,
    zipfile.BadZipFile,
)
ARCHIVE = b"PK\x03\x04"  # first bytes of a file of `torch.save` since torch 1.6


def read_pickled(path: Path, expected: str = "tensors", stays_in_file: bool = False) -> Any:
    """What a file of `torch.save` holds; CheckpointError, with what was expected, where it is missing or holds anything
    but tensors and plain values. Nothing that it asks for is run.

    stays_in_file: read tensors when they are used, which files of before torch 1.6 cannot; they are refused then.
    """
    try:
        _check_archive(regular_file(path))
        return torch.load(path, "cpu", weights_only=True, mmap=stays_in_file)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: expected {expected}, got {error!r}") from error


def _check_archive(path: Path) -> None:
    """Raise CheckpointError for an archive that is larger unpacked than it is: `torch.save` does not compress."""
    with path.open("rb") as file:
        if file.read(len(ARCHIVE)) != ARCHIVE:
            return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    size, unpacked = path.stat().st_size, sum(record.file_size for record in records)
    if unpacked > size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
        expected = "an archive of torch.save, which is not compressed"
        raise CheckpointError(f"{path}: expected {expected}, got {unpacked} bytes of records in {size}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or, by its name, of one of `torch.save`, in float32; CheckpointError where it
    is missing or none, or holds others than weights."""
    try:
        stored = load_file(regular_file(path)) if path.suffix == ".safetensors" else read_pickled(path)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: expected tensors, got {error!r}") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: expected tensors by name, got {type(stored).__name__}")
    odd = [str(name) for name, each in stored.items() if not (isinstance(name, str) and isinstance(each, Tensor))]
    if odd or not stored:
        raise CheckpointError(f"{path}: expected tensors by name, got {sorted(odd)[:NAMED] or 'none'}")
    return in_float32(stored, path)


def in_float32(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors out of a file, in float32; CheckpointError names those that are no weights."""
    odd = sorted(name for name, tensor in tensors.items() if not _is_plain(tensor))
    if odd:
        raise CheckpointError(f"{path}: expected dense tensors of real numbers, got others in {odd[:NAMED]}")
    try:
        return {name: tensor.float() for name, tensor in tensors.items()}
    except UNREADABLE as error:  # of a type that nothing is computed in
        raise CheckpointError(f"{path}: expected tensors, got {error!r}") from error


def _is_plain(tensor: Tensor) -> bool:
    """Whether each element is a real number that lies in memory: one byte may stand for 2^46 elements."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        return False
    return not tensor.is_complex() and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.itemsize


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], place: Path, assign: bool = False) -> None:
    """Fill a module; CheckpointError names, after their place, the tensors that do not fit.

    assign: whether the module takes the tensors themselves, as one on the device `meta` must.
    """
    wanted = module.state_dict()
    wrong = sorted(name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape)
    if wrong or wanted.keys() != tensors.keys():
        missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        raise CheckpointError(
            f"{place}: missing {first(missing)}, unknown {first(unknown)}, of another shape {first(wrong)}"
        )
    check_finite(tensors, place)
    module.load_state_dict(tensors, assign=assign)


def first(names: list[str]) -> str:
    """Return some names of a sorted list for an error message, of each part of a model one, and how many others."""
    if len(names) <= NAMED:
        return str(names)
    parts = list({name.partition(".")[0]: name for name in reversed(names)}.values())[::-1][:NAMED]
    chosen = sorted({*parts, *names[: NAMED - len(parts)]})
    return f"{chosen} and {len(names) - len(chosen)} more"


def check_finite(tensors: Mapping[str, Tensor], place: Path) -> None:
    """CheckpointError where a tensor holds what would become noise or silence without a word."""
    odd = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if odd:
        raise CheckpointError(f"{place}: expected finite numbers, got NaN or infinity in {odd[:NAMED]}")
