"""`.nemo` archives: tar files, without compression, with a config, weights and further files."""

import os
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from tarfile import AREGTYPE, BLOCKSIZE, ENCODING, REGTYPE, TarError, TarInfo
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

from torch import Tensor

from stretto.errors import CheckpointError
from stretto.untrusted_files import MAX_TEXT_BYTES, MAX_YAML_BYTES, parsed_yaml, regular_file
from stretto.weights.loading import open_tensors

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
IN_ARCHIVE = "nemo:"  # prefix in a config of the name of a file in the archive
MAX_MEMBERS = 1 << 10
PART_BYTES = 1 << 20  # bytes of a file's content that are read at once


class Member(NamedTuple):
    """File in an archive, at an offset in bytes."""

    offset: int
    size: int


class NemoArchive:
    """Uncompressed archive that is open within a `with` block. Names of its files have no leading `./`.

    Headers that extend others (of long names, times or sparse files) are skipped, because they may be of any size. No
    file that the archive must have needs one. Entering the block raises CheckpointError if
    the file is not an uncompressed archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        try:
            self._file = regular_file(self.path).open("rb")
        except OSError as error:
            raise self._not_an_archive(error) from error
        try:
            self._members = self._read_headers()
        except (OSError, TarError, ValueError) as error:
            self._file.close()
            raise self._not_an_archive(error) from error
        except CheckpointError:
            self._file.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _not_an_archive(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.path}: expected an uncompressed tar file, got {error!r}")

    def _read_headers(self) -> dict[str, Member]:
        size = self._file.seek(0, os.SEEK_END)
        members: dict[str, Member] = {}
        offset = 0
        for _ in range(MAX_MEMBERS + 1):
            self._file.seek(offset)
            block = self._file.read(BLOCKSIZE)
            if offset and not block.strip(b"\0"):
                return members
            header = TarInfo.frombuf(block, ENCODING, "surrogateescape")
            offset += BLOCKSIZE
            if not 0 <= header.size <= size - offset:
                raise CheckpointError(f"{self.path}: {header.name}: expected a file that the archive holds completely")
            if header.type in (REGTYPE, AREGTYPE):
                members[header.name.removeprefix("./")] = Member(offset, header.size)
            offset += ceil(header.size / BLOCKSIZE) * BLOCKSIZE
        raise CheckpointError(f"{self.path}: expected at most {MAX_MEMBERS} files, got more")

    def config(self) -> dict[str, Any]:
        """Return the config; raise CheckpointError if it is missing or is not a mapping."""
        return parsed_yaml(self.text(CONFIG, MAX_YAML_BYTES), f"{self.path}: {CONFIG}")

    def text(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
        """Return the text of a file; raise CheckpointError if it is missing, too large, or not UTF-8."""
        member = self._member(name)
        if member.size > max_bytes:
            raise CheckpointError(f"{self.path}: {name}: expected at most {max_bytes} bytes, got {member.size}")
        try:
            return b"".join(self._parts(member)).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {name}: expected UTF-8, got {error}") from error

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors by name; raise CheckpointError if their file is missing or contains anything else.

        They are read on access, from a copy of the file that is freed with the last of them.
        """
        member = self._member(WEIGHTS)
        with TemporaryDirectory() as folder:
            copy = Path(folder) / WEIGHTS
            with copy.open("wb") as file:
                file.writelines(self._parts(member))
            try:
                return open_tensors(copy)
            except CheckpointError as error:
                raise CheckpointError(f"{self.path}: {error}") from error

    def _parts(self, member: Member) -> Iterator[bytes]:
        self._file.seek(member.offset)
        num_left = member.size
        while num_left and (content := self._file.read(min(num_left, PART_BYTES))):
            yield content
            num_left -= len(content)

    def _member(self, name: str) -> Member:
        if name not in self._members:
            raise CheckpointError(f"{self.path}: {name} is missing, got {sorted(self._members)[:8]}")
        return self._members[name]
