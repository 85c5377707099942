"""Listing of a release's files in a folder on this machine."""

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from stretto.errors import CheckpointError
from stretto.family.recognition import MAX_TEXT_BYTES, Listing
from stretto.releases.errors import BadArgument
from stretto.untrusted_files import read_text, released_file

MAX_FILES = 10_000  # files of a release; the largest published repository has about 1,000


class Folder(Listing):
    """Listing of the files in `path` and its subfolders, without hidden folders.

    Attributes:
        path: The folder.
        content: Digest of the names, sizes and times of the files.
    """

    def __init__(self, path: Path):
        """List the files.

        Raises:
            BadArgument: If `path` is no folder, or has no files or too many.
        """
        if not os.path.isdir(path):  # a Path raises OSError if it is too long
            got = "a file" if os.path.exists(path) else "a path that does not exist"
            raise BadArgument(f"{path}: expected a folder with a release, got {got}")
        self.path = path
        found: dict[str, os.stat_result] = {}
        for each in path.rglob("*"):
            name = each.relative_to(path).as_posix()
            if any(part.startswith(".") for part in name.split("/")[:-1]):
                continue
            with suppress(OSError):  # a link to nothing
                if stat.S_ISREG((facts := each.stat()).st_mode):
                    found[name] = facts
            if len(found) > MAX_FILES:
                raise BadArgument(f"{path}: expected a folder with at most {MAX_FILES} files, got more")
        if not found:
            raise BadArgument(f"{path}: expected a folder with a release, got an empty folder")
        text = repr([(name, each.st_size, each.st_mtime_ns) for name, each in sorted(found.items())])
        self.content = hashlib.sha256(text.encode()).hexdigest()
        super().__init__(frozenset(found), {name: each.st_size for name, each in found.items()})

    def text(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> str | None:
        """Return the text of a file; None if there is no such file, or it is not UTF-8 text of at most `max_bytes`."""
        if name not in self.names:
            return None
        try:
            return read_text(released_file(self.path, name), max_bytes)
        except CheckpointError:
            return None
