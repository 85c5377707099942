"""Strict reading of tensors in checkpoints and releases, plans for their conversion, and writing of sharded files.

transformers is not imported, because it takes longer to import than a model server needs for everything else.
"""

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import (
    json_object,
    named_file,
    plain_name,
    regular_file,
    released_file,
)

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
PIECE = 64 << 20  # bytes per write
Progress = Callable[[int], None]


@dataclass(frozen=True)
class PendingTensor:
    """Tensor to be written, with its name, dtype, shape, and a function that reads it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """File that has been written, with its path relative to the checkpoint and its SHA-256 in hexadecimal."""

    name: str
    num_bytes: int
    sha256: str


def split(entries: list[PendingTensor], max_bytes: int) -> list[list[PendingTensor]]:
    """Split entries, in order, into shards of at most `max_bytes`; a larger entry gets its own shard."""
    shards: list[list[PendingTensor]] = []
    size = max_bytes
    for entry in entries:
        if size + entry.num_bytes > max_bytes or not shards:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def write_shards(folder: Path, entries: list[PendingTensor], max_bytes: int, progress: Progress) -> list[Written]:
    """Write the shards `model-0000N-of-0000M.safetensors` and their index."""
    shards = split(entries, max_bytes)
    files: list[Written] = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files.append(write_file(folder / name, shard, progress))
        weight_map |= {entry.name: name for entry in shard}
    index = {"metadata": {"total_size": sum(entry.num_bytes for entry in entries)}, "weight_map": weight_map}
    return [*files, write_json(folder / "model.safetensors.index.json", index)]


def write_file(path: Path, entries: list[PendingTensor], progress: Progress) -> Written:
    """Write one safetensors file."""
    # sorted so that each tensor begins at a multiple of its item size
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        span = [offset, offset + entry.num_bytes]
        header[entry.name] = {"dtype": DTYPES[entry.dtype], "shape": [*entry.shape], "data_offsets": span}
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(len(text).to_bytes(8, "little") + text, entries, progress):
            digest.update(piece)
            file.write(piece)
        size = _reach_disk(file)
    return Written(path.name, size, digest.hexdigest())


def _reach_disk(file: BinaryIO) -> int:
    """Flush a file to disk before its directory is renamed, and return its size in bytes."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def _pieces(header: bytes, entries: list[PendingTensor], progress: Progress) -> Iterator[memoryview]:
    yield memoryview(header)
    for entry in entries:
        yield from _content(entry, progress)


def _content(entry: PendingTensor, progress: Progress) -> Iterator[memoryview]:
    stored = entry.read()
    if stored.is_complex():
        raise CheckpointError(f"{entry.name}: expected real numbers, got {stored.dtype}")
    tensor = stored.to(entry.dtype).contiguous()
    assert tuple(tensor.shape) == entry.shape, f"{entry.name}: {tuple(tensor.shape)} for {entry.shape}"
    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(content), PIECE):
        piece = content[start : start + PIECE]
        yield piece
        progress(len(piece))


def write_json(path: Path, record: dict[str, Any]) -> Written:
    """Write `record` as an indented JSON file."""
    content = (json.dumps(record, indent=2) + "\n").encode()
    path.write_bytes(content)
    return Written(path.name, len(content), hashlib.sha256(content).hexdigest())


def copy_file(source: Path, target: Path, name: str) -> Written:
    """Copy a file; `name` is the path of the copy relative to the checkpoint."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(PIECE):
            digest.update(piece)
            write.write(piece)
        size = _reach_disk(write)
    return Written(name, size, digest.hexdigest())


NAMED = 12  # maximum number of tensor names in an error message


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Entry of a `Plan`: one tensor of the converted checkpoint.

    Attributes:
        stored: Shape of the published tensor.
        edit: Function that converts the published tensor, followed by the `others`; None to keep it unchanged. It also
            gets empty tensors on device meta, to compute the shape of its result.
        dtype: dtype of the tensor in the checkpoint; None for that of the other tensors.
        also: Further tensors for the checkpoint that are made from the same published tensor.
        others: Shapes, by published name, of the further tensors that `edit` reads.
    """

    name: str
    stored: Shape
    edit: Callable[..., Tensor] | None = None
    dtype: torch.dtype | None = None
    also: tuple["Part", ...] = ()
    others: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def written(self) -> Shape:
        """Shape of the tensor in the checkpoint."""
        stored = [torch.empty(shape, device="meta") for shape in (self.stored, *self.others.values())]
        return tuple((self.edit(*stored) if self.edit else stored[0]).shape)

    def read(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        """Return the tensor to write, given the published tensors and the name of the first one."""
        if self.edit is None:
            return tensors[name]
        return self.edit(tensors[name], *(tensors[other] for other in self.others))


Plan = dict[str, Part]  # keys: published names


def shapes_read(plan: Plan) -> dict[str, Shape]:
    """Return the shapes of all published tensors that a plan reads, by name."""
    shapes = {name: tensor.stored for name, tensor in plan.items()}
    for tensor in plan.values():
        for written in (tensor, *tensor.also):
            shapes |= written.others
    return shapes


def shapes_of(model_class: type[nn.Module], config: Any) -> dict[str, tuple[int, ...]]:
    """Map the tensor names of a transformers model to shapes, without allocating the tensors."""
    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


class TensorMismatch(CheckpointError):
    """Raised if tensors of a release are missing, unknown or of another shape."""


def check(plan: Plan, published: Mapping[str, Tensor], dropped: Iterable[str]) -> list[str]:
    """Check that a plan covers all published tensors; see `check_shapes`."""
    return check_shapes(shapes_read(plan), published, dropped)


def check_shapes(shapes: Mapping[str, Shape], published: Mapping[str, Tensor], dropped: Iterable[str]) -> list[str]:
    """Return the unused tensors' names; raise TensorMismatch if tensors are missing, unknown or of another shape.

    Args:
        shapes: Expected shapes by published name.
        dropped: Names of unused tensors, or prefixes of such names, each ending in a dot.
    """
    prefixes = tuple(dropped)
    others = [name for name in published if name not in shapes]
    unknown = [name for name in others if not any(_is_under(name, prefix) for prefix in prefixes)]
    missing = [name for name in shapes if name not in published]
    wrong = [
        f"{name} {list(published[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in published and tuple(published[name].shape) != shape
    ]
    raise_mismatch(missing, unknown, wrong)
    return others


def _is_under(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix.endswith(".") else name == prefix


def raise_mismatch(
    missing: Iterable[str] = (), unknown: Iterable[str] = (), wrong: Iterable[str] = (), source: object = None
) -> None:
    """Raise TensorMismatch if there are missing or unknown tensors, or tensors of a wrong shape.

    Args:
        wrong: Names of the tensors of a wrong shape, or descriptions that begin with the name.
    """
    kinds = {"missing": sorted(missing), "unknown": sorted(unknown), "wrong shape": sorted(wrong)}
    listed = "; ".join(f"{fault}: {first(names)}" for fault, names in kinds.items() if names)
    if listed:
        prefix = "" if source is None else f"{source}: "
        raise TensorMismatch(f"{prefix}tensors do not match: {listed}")


def require(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | None, ...] | None]) -> None:
    """Raise TensorMismatch unless tensors are present with their shapes.

    Args:
        shapes: Expected shape of each tensor, with None for any size; None for any shape.
    """
    missing = [name for name in shapes if name not in tensors]
    wrong = []
    for name, shape in shapes.items():
        if name in missing or shape is None:
            continue
        actual = tuple(tensors[name].shape)
        fits = len(actual) == len(shape) and all(
            size in (None, actual_size) for size, actual_size in zip(shape, actual, strict=True)
        )
        if not fits:
            expected = ", ".join("n" if size is None else str(size) for size in shape)
            wrong.append(f"{name} {list(actual)} instead of [{expected}]")
    raise_mismatch(missing, wrong=wrong)


# Exceptions raised for an invalid tensor file; `torch.load` passes on any exception from its unpickler.
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
ARCHIVE = b"PK\x03\x04"  # first bytes of a file written by `torch.save` of torch 1.6 or later


def read_pickled(path: Path, expected: str = "tensors", stays_in_file: bool = False) -> Any:
    """Return the tensors and plain values in a `torch.save` file, without executing its code, or raise CheckpointError.

    Args:
        stays_in_file: True to memory-map the tensors and read them on use. Files from torch versions before 1.6 are
            then rejected.
    """
    try:
        _check_archive(regular_file(path))
        return torch.load(path, "cpu", weights_only=True, mmap=stays_in_file)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: expected {expected}, got {error!r}") from error


def _check_archive(path: Path) -> None:
    """Raise CheckpointError if an archive is compressed or its records exceed the file size, unlike in `torch.save`."""
    with path.open("rb") as file:
        if file.read(len(ARCHIVE)) != ARCHIVE:
            return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    size = path.stat().st_size
    unpacked = sum(record.file_size for record in records)
    if unpacked > size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
        expected = "an uncompressed archive of torch.save"
        raise CheckpointError(f"{path}: expected {expected}, got {unpacked} bytes of records in a file of {size} bytes")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors or `torch.save` file as float32; raise CheckpointError for other contents."""
    try:
        stored = load_file(regular_file(path)) if path.suffix == ".safetensors" else read_pickled(path)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: expected tensors, got {error!r}") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: expected tensors by name, got {type(stored).__name__}")
    odd = [str(name) for name, tensor in stored.items() if not (isinstance(name, str) and isinstance(tensor, Tensor))]
    if odd or not stored:
        raise CheckpointError(f"{path}: expected tensors by name, got {sorted(odd)[:NAMED] or 'none'}")
    return in_float32(stored, path)


def in_float32(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Convert tensors to float32; raise CheckpointError if one is not dense or not real."""
    odd = sorted(name for name, tensor in tensors.items() if not is_plain(tensor))
    if odd:
        raise CheckpointError(f"{path}: expected dense tensors of real numbers, got other values in {first(odd)}")
    try:
        return {name: tensor.float() for name, tensor in tensors.items()}
    except UNREADABLE as error:  # the dtype has no arithmetic
        raise CheckpointError(f"{path}: expected tensors, got {error!r}") from error


def is_plain(tensor: Tensor) -> bool:
    """Return True if the tensor is dense and real and stores all elements.

    The last condition is checked because a broadcast tensor could claim to have 2^46 elements while storing one byte.
    """
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        return False
    return not tensor.is_complex() and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.itemsize


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: Path, assign: bool = False) -> None:
    """Load tensors into a module; raise CheckpointError if they are missing, unknown, not finite or of wrong shape.

    Args:
        assign: True to use the tensors themselves as parameters, as required for a module on the `meta` device.
    """
    wanted = module.state_dict()
    wrong = [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    raise_mismatch(wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys(), wrong, source)
    check_finite(tensors, source)
    module.load_state_dict(tensors, assign=assign)


def first(names: list[str]) -> str:
    """Format a sorted list of tensor names for an error message.

    A long list is cut to NAMED names, with at least one from each part of the model if possible. The number of omitted
    names is appended.
    """
    if len(names) <= NAMED:
        return ", ".join(names)
    parts = list({name.partition(".")[0]: name for name in reversed(names)}.values())[::-1][:NAMED]
    chosen = sorted({*parts, *names[: NAMED - len(parts)]})
    return f"{', '.join(chosen)} and {len(names) - len(chosen)} more"


def check_finite(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise CheckpointError if a tensor contains NaN or infinity, which would result in noise or silence."""
    odd = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if odd:
        raise CheckpointError(f"{source}: expected finite numbers, got NaN or infinity in {first(odd)}")


CONFIG_FILE = "config.json"


def codec_directory(checkpoint: Path) -> Path:
    """Return `codec/` in a checkpoint, or the checkpoint itself; raise CheckpointError without a config.json."""
    directory = checkpoint / "codec" if (checkpoint / "codec").is_dir() else checkpoint
    if not (directory / CONFIG_FILE).is_file():
        raise CheckpointError(f"{directory / CONFIG_FILE} is missing")
    return directory


INDEX = ".safetensors.index.json"
SUFFIX = ".safetensors"
# names used by transformers, in order of preference
WHOLE = "model.safetensors"
SHARDS = f"model{INDEX}"


class StoredTensors(Mapping[str, Tensor]):
    """Tensors in several safetensors files by name, read on access."""

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
    """Return the safetensors files that `path` refers to, or None for other kinds of file.

    A folder may contain the same weights twice, so files are chosen as in transformers: the file that `config.json`
    names as `transformers_weights`, `model.safetensors`, or the shards of `model.safetensors.index.json`.
    If there are none of these, all safetensors files in the folder are returned. If `path` is an index, the files
    listed in it are returned.

    Raises:
        CheckpointError: If a file is not regular, an index lists a file outside its folder, or a link in the folder
            points outside the release.
    """
    if path.is_dir():
        config = json_object(released_file(path, CONFIG_FILE)) if (path / CONFIG_FILE).exists() else {}
        if config.get("transformers_weights") is not None:
            return _named_files(named_file(path, config, "transformers_weights"))
        for name in (WHOLE, SHARDS):
            if os.path.lexists(path / name):
                return _named_files(released_file(path, name))
        return [released_file(path, file.name) for file in sorted(path.glob(f"*{SUFFIX}"))]
    return _named_files(regular_file(path))


def _named_files(path: Path) -> list[Path] | None:
    """Return the files listed in an index, or `path` itself for a safetensors file, or None for other files."""
    if not path.name.endswith(INDEX):
        return [path] if path.suffix == SUFFIX else None
    names = json_object(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{path}: weight_map: expected an object that maps tensors to files, got {shown(names)}")
    return [released_file(path.parent, plain_name(path.parent, name)) for name in sorted(set(names.values()))]


def open_tensors(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors in `path` by name, read on access, or raise CheckpointError.

    Args:
        path: `model.pt` ({"module": …}, {"state_dict": …} or {"model": …}), `model.pth` or `2epoch.pth`, a safetensors
            file, its index, or a folder of such files.
    """
    try:
        files = safetensors_files(path)
        stored = read_pickled(path, stays_in_file=True) if files is None else StoredTensors(files)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: expected tensors, got {error!r}") from error
    if isinstance(stored, StoredTensors) and stored:
        return stored
    tensors: Any = {}
    if isinstance(stored, dict):
        tensors = next((stored[name] for name in ("module", "state_dict", "model") if name in stored), stored)
    if not isinstance(tensors, dict):
        tensors = {}
    odd = sorted(
        str(name) for name, tensor in tensors.items() if not (isinstance(name, str) and torch.is_tensor(tensor))
    )
    if odd or not tensors:
        raise CheckpointError(
            f"{path}: expected tensors by name, or under 'module', 'state_dict' or 'model'; got {odd[:8] or 'none'}"
        )
    return tensors
