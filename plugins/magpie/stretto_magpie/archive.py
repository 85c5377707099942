"""`.nemo` archives: tar files, without compression, with a config, weights and further files."""

import shutil
import tarfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from torch import Tensor

from stretto.errors import CheckpointError
from stretto.untrusted_files import MAX_TEXT_BYTES, MAX_YAML_BYTES, parsed_yaml, regular_file
from stretto.weights.loading import open_tensors

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
MAX_MEMBERS = 1 << 10


class NemoArchive:
    """Archive that is open within a `with` block. Names of its files have no leading `./`.

    Raises:
        CheckpointError: At the beginning of the block, if the file is missing, or is not an uncompressed tar file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                self._tar = stack.enter_context(tarfile.open(regular_file(self.path), "r:"))
                self._members = self._files()
            except (OSError, tarfile.TarError, ValueError) as error:
                raise CheckpointError(f"{self.path}: expected an uncompressed tar file, got {error!r}") from error
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _files(self) -> dict[str, tarfile.TarInfo]:
        """Return the regular files in the archive by name."""
        size = self.path.stat().st_size
        files: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(self._tar):
            if number == MAX_MEMBERS:
                raise CheckpointError(f"{self.path}: expected at most {MAX_MEMBERS} files, got more")
            if not member.isreg():
                continue
            # A sparse file may be larger than the archive.
            if member.issparse() or member.offset_data + member.size > size:
                raise CheckpointError(f"{self.path}: {member.name}: expected a file that the archive holds completely")
            files[member.name.removeprefix("./")] = member
        return files

    @property
    def names(self) -> list[str]:
        """Names of all files."""
        return list(self._members)

    def config(self) -> dict[str, Any]:
        """Return the config; raise CheckpointError if it is missing or is not a mapping."""
        return parsed_yaml(self.text(CONFIG, MAX_YAML_BYTES), f"{self.path}: {CONFIG}")

    def text(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
        """Return the text of a file.

        Raises:
            CheckpointError: If the file is missing, too large, or not UTF-8.
        """
        member = self._member(name)
        if member.size > max_bytes:
            raise CheckpointError(f"{self.path}: {name}: expected at most {max_bytes} bytes, got {member.size}")
        content = self._tar.extractfile(member)
        assert content is not None, "a regular file has content"
        try:
            return content.read().decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {name}: expected UTF-8, got {error}") from error

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors by name.

        They are read on access, from a copy of the file that is freed with the last of them.

        Raises:
            CheckpointError: If the file is missing, or contains anything but tensors.
        """
        member = self._member(WEIGHTS)
        with TemporaryDirectory() as folder:
            copy = Path(folder) / WEIGHTS
            content = self._tar.extractfile(member)
            assert content is not None, "a regular file has content"
            with copy.open("wb") as file:
                shutil.copyfileobj(content, file)
            try:
                return open_tensors(copy)
            except CheckpointError as error:
                raise CheckpointError(f"{self.path}: {error}") from error

    def _member(self, name: str) -> tarfile.TarInfo:
        if name not in self._members:
            raise CheckpointError(f"{self.path}: {name} is missing, got {sorted(self._members)[:8]}")
        return self._members[name]
