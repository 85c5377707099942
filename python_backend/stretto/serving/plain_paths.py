"""Paths that Triton's Python backend accepts.

WORKAROUND(triton): the backend starts its stubs by a bash command in which paths are not quoted.
"""

import re
from pathlib import Path

PLAIN = re.compile(r"[A-Za-z0-9_./+@%=:,-]+")


def plain_path(path: Path, folder: Path, name: str) -> Path:
    """Return `path` if bash reads it as one ASCII word; otherwise create and return a link to it.

    Args:
        path: Folder.
        folder: Folder of the link.
        name: Name of the link.
    """
    if PLAIN.fullmatch(str(path)):
        return path
    link = folder / name
    link.symlink_to(path.absolute(), target_is_directory=True)
    return link
