"""Names for folders that Triton can take: it starts its stubs by a line of bash in which no path is quoted."""

import re
from pathlib import Path

PLAIN = re.compile(r"[A-Za-z0-9_./+@%=:,-]+")


def plain_path(path: Path, folder: Path, name: str) -> Path:
    """`path` itself where bash reads it as one word, and any locale can say it; else a link to it, `folder`/`name`."""
    if PLAIN.fullmatch(str(path)):
        return path
    link = folder / name
    link.symlink_to(path.absolute(), target_is_directory=True)
    return link
