"""Tensors of a conversion: mapping from published names, and sharded safetensors output."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from stretto.errors import CheckpointError

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
class Entry:
    """Tensor to be written: name, dtype, shape, and a function that reads it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Written:
    """Written file.

    Attributes:
        name: Path relative to the checkpoint.
        num_bytes: Size in bytes.
        sha256: SHA-256 of the contents, in hexadecimal.
    """

    name: str
    num_bytes: int
    sha256: str


def split(entries: list[Entry], max_bytes: int) -> list[list[Entry]]:
    """Split entries, in order, into shards of at most `max_bytes`; a larger entry has a shard of its own."""
    shards: list[list[Entry]] = []
    size = max_bytes
    for each in entries:
        if size + each.num_bytes > max_bytes or not shards:
            shards.append([])
            size = 0
        shards[-1].append(each)
        size += each.num_bytes
    return shards


def write_shards(folder: Path, entries: list[Entry], max_bytes: int, progress: Progress) -> list[Written]:
    """Write `model-0000N-of-0000M.safetensors` and their index.

    Args:
        folder: Existing folder.
        entries: Tensors to write, in order.
        max_bytes: Maximum size of a shard.
        progress: Called with the number of bytes after each part.

    Returns:
        Written files.
    """
    shards = split(entries, max_bytes)
    files: list[Written] = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files.append(write_file(folder / name, shard, progress))
        weight_map |= {each.name: name for each in shard}
    index = {"metadata": {"total_size": sum(each.num_bytes for each in entries)}, "weight_map": weight_map}
    return [*files, write_json(folder / "model.safetensors.index.json", index)]


def write_file(path: Path, entries: list[Entry], progress: Progress) -> Written:
    """Write one safetensors file."""
    # so that each tensor begins at a multiple of its item size
    entries = sorted(entries, key=lambda each: -each.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for each in entries:
        span = [offset, offset + each.num_bytes]
        header[each.name] = {"dtype": DTYPES[each.dtype], "shape": [*each.shape], "data_offsets": span}
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


def _pieces(header: bytes, entries: list[Entry], progress: Progress) -> Iterator[memoryview]:
    yield memoryview(header)
    for each in entries:
        yield from _content(each, progress)


def _content(each: Entry, progress: Progress) -> Iterator[memoryview]:
    tensor = each.read().to(each.dtype).contiguous()
    assert tuple(tensor.shape) == each.shape, f"{each.name}: {tuple(tensor.shape)} for {each.shape}"
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
    """Copy a file.

    Args:
        source: File to copy.
        target: Path of the copy.
        name: Path of the copy relative to the checkpoint.
    """
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(PIECE):
            digest.update(piece)
            write.write(piece)
        size = _reach_disk(write)
    return Written(name, size, digest.hexdigest())


NAMED = 12  # maximum number of tensor names in an error message


@dataclass(frozen=True)
class Part:
    """Planned tensor.

    Attributes:
        name: Name in the checkpoint.
        stored: Shape of the published tensor.
        edit: Conversion of the published tensor; None if it is unchanged.
    """

    name: str
    stored: tuple[int, ...]
    edit: Callable[[Tensor], Tensor] | None = None

    @property
    def written(self) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint."""
        stored = torch.empty(self.stored, device="meta")
        return tuple((self.edit(stored) if self.edit else stored).shape)


Plan = dict[str, Part]  # keys: published names


def shapes_of(model_class: type[nn.Module], config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a transformers model's tensors by name, without allocating them."""
    with torch.device("meta"):
        model = model_class(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check(plan: Plan, published: Mapping[str, Tensor], dropped: Iterable[str]) -> list[str]:
    """Check that a plan covers all published tensors.

    Args:
        plan: Tensors to write, by published name.
        published: Published tensors by name.
        dropped: Names of unused tensors, or prefixes of such names that end in a dot.

    Returns:
        Names of the unused tensors.

    Raises:
        CheckpointError: If tensors are missing, unknown or of another shape; the message names them.
    """
    prefixes = tuple(dropped)
    others = [name for name in published if name not in plan]
    unknown = [name for name in others if not any(_is_under(name, prefix) for prefix in prefixes)]
    missing = [name for name in plan if name not in published]
    wrong = [
        f"{name} {list(published[name].shape)} instead of {list(part.stored)}"
        for name, part in plan.items()
        if name in published and tuple(published[name].shape) != part.stored
    ]
    found = {"missing": missing, "unknown": unknown, "wrong shape": wrong}
    if missing or unknown or wrong:
        raise CheckpointError("tensors do not match: " + "; ".join(_named(*each) for each in found.items() if each[1]))
    return others


def _is_under(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix.endswith(".") else name == prefix


def _named(kind: str, names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{kind}: {', '.join(sorted(names)[:NAMED])}{rest}"
