"""Folders in which a converter finds the files of a release and of its companions."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stretto.releases.entry import ReleaseEntry
from stretto.releases.errors import ReleaseError

LENGTH_BYTES = 8  # of the length of a safetensors header


class View:
    """Folders that contain exactly the files of a release, as links, so that other files are not taken for its own.

    Args:
        folder: Folder to create.
        entry: The release.
        repositories: Repository of the release, and those of its companions.
    """

    def __init__(self, folder: Path, entry: ReleaseEntry, repositories: Sequence[str]) -> None:
        self._folder = folder
        self._entry = entry
        self._repositories = repositories
        places = [companion.to for companion in entry.companions if companion.option is None]
        root = folder / "0"
        self.folders = [root, *(folder / str(n) if to is None else root / to for n, to in enumerate(places, 1))]

    def arguments(self) -> list[str]:
        """Return the converter's arguments for these folders."""
        return self._entry.arguments(self.folders[0], self.folders[1:], self.folders[0])

    def add(self, number: int, name: str, place: Path) -> Path:
        """Add a file of a repository, and return its path."""
        path = self.folders[number] / name
        link(place.resolve(), path)
        return path

    def add_header(self, number: int, name: str, tensors: Mapping[str, Any]) -> None:
        """Add a safetensors file whose numbers are holes, which take no space on the disk and are read as zero.

        Args:
            number: Number of the repository.
            name: Path of the file in the repository.
            tensors: Header of the published file: for each tensor its `dtype`, `shape` and `data_offsets`.
        """
        path = self.folders[number] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        header = json.dumps(tensors).encode()
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
            file.truncate(LENGTH_BYTES + len(header) + end)

    @contextmanager
    def named(self) -> Iterator[None]:
        """In the message of a ReleaseError, replace the folders by the names of their repositories."""
        try:
            yield
        except ReleaseError as error:
            message = str(error)
            for folder, repository in zip(self.folders, self._repositories, strict=True):
                message = message.replace(str(folder), repository)
            error.args = (message,)
            raise

    def remove(self) -> None:
        """Remove the folders."""
        shutil.rmtree(self._folder)


def link(source: Path, target: Path) -> None:
    """Make a second name for a file; a copy on another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise ReleaseError(f"{target}: expected one file of this name, got two") from error
    except OSError:
        shutil.copyfile(source, target)
