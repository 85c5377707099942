"""CUDA extensions reduced to the code of one GPU, so that they compress well.

A section `.nv_fatbin` holds containers one after another, each with entries for several architectures: machine code
(cubins), and PTX that the driver can compile. Entries that the GPU does not run are filled with zeros, which compress
to nothing. Offsets and sizes stay the same, so the loader still finds everything. Kernels without machine code for the
GPU can be kept as PTX. Other libraries lose their symbols, which are most of some.
"""

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTION = b".nv_fatbin"
MAGIC, ALIGNMENT = 0xBA55ED50, 8
CONTAINER, CONTAINER_SIZE = "<IHHQ", 16  # magic, version, bytes of this header, bytes of all entries
ENTRY, ENTRY_SIZE = "<HHIQ", 64  # kind, version, bytes of this header, bytes of the payload; the shortest header
ARCHITECTURE_AT = 28  # uint32, in an entry's header
PTX, CUBIN = 1, 2


@dataclass(frozen=True)
class Entry:
    """A payload of one container. kind: CUBIN or PTX; architecture: 90 for compute capability 9.0."""

    kind: int
    architecture: int
    payload: range


def trim(library: bytes, architecture: int, with_ptx: bool = False) -> bytes:
    """Return an extension without the payloads that a GPU of `architecture` does not run.

    Args:
        library: Contents of the file.
        architecture: Compute capability of the GPU, 90 for 9.0.
        with_ptx: True to keep the PTX of kernels that have no machine code for the GPU.

    Raises:
        ValueError: Its fat binaries have an unknown layout.
    """
    trimmed = bytearray(library)
    for section in _sections(library, SECTION):
        for entries in _containers(library, section):
            for entry in _useless(entries, architecture, with_ptx):
                trimmed[entry.payload.start : entry.payload.stop] = bytes(len(entry.payload))
    return bytes(trimmed)


def _useless(entries: list[Entry], architecture: int, with_ptx: bool) -> list[Entry]:
    """Return the entries to remove; machine code runs on GPUs of the same major and no lower minor number."""
    major = architecture // 10
    cubins = [each for each in entries if each.kind == CUBIN and 10 * major <= each.architecture <= architecture]
    best = max((each.architecture for each in cubins), default=None)
    kept = [each for each in cubins if each.architecture == best]
    if with_ptx and not kept:
        kept = [entry for entry in entries if entry.kind == PTX]
    return [entry for entry in entries if entry not in kept]


def _sections(library: bytes, name: bytes) -> Iterator[range]:
    """Yield the ranges of the sections of that name in a 64-bit ELF file; none for any other file."""
    if library[:5] != b"\x7fELF\x02":
        return
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, table + index * size) for index in range(count)]
    names = headers[names_index][4]
    for name_offset, _, _, _, offset, length in headers:
        end = library.index(b"\0", names + name_offset)
        if library[names + name_offset : end] == name:
            yield range(offset, offset + length)


def _containers(library: bytes, section: range) -> Iterator[list[Entry]]:
    position = section.start
    while position + CONTAINER_SIZE <= section.stop:
        magic, _, header, size = struct.unpack_from(CONTAINER, library, position)
        if magic != MAGIC:  # padding between containers
            position += ALIGNMENT
            continue
        stop = position + header + size
        if stop > section.stop:
            raise ValueError(f"a fat binary at {position} extends past the end of its section")
        yield list(_entries(library, range(position + header, stop)))
        position = stop


def _entries(library: bytes, span: range) -> Iterator[Entry]:
    at = span.start
    while at < span.stop:
        kind, _, header, size = struct.unpack_from(ENTRY, library, at)
        if header < ENTRY_SIZE or at + header + size > span.stop:
            raise ValueError(f"an entry of a fat binary at {at} does not fit into its container")
        (architecture,) = struct.unpack_from("<I", library, at + ARCHITECTURE_AT)
        yield Entry(kind, architecture, range(at + header, at + header + size))
        at += header + size


def without_symbols(data: bytes) -> bytes:
    """Return a library without symbols that only debuggers read; unchanged if the host has no `strip`."""
    strip = shutil.which("strip")
    if strip is None:
        return data
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(data)
        file.flush()
        done = subprocess.run([strip, "--strip-unneeded", file.name], capture_output=True, check=False)
        stripped = Path(file.name).read_bytes()
    return stripped if done.returncode == 0 else data
