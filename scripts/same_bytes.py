"""Make source distributions reproducible, so that equal trees give equal bytes.

    SOURCE_DATE_EPOCH=1700000000 python -m scripts.same_bytes dist/stretto-0.2.0.tar.gz

setuptools records build time and user. The script rewrites the members in sorted order. All get the given date, no
owner, and are readable by everyone; `scripts/release.sh` passes the date of the latest commit. Contents and names stay
unchanged. Wheel builds already honour the variable.
"""

import gzip
import io
import os
import sys
import tarfile
from pathlib import Path

EPOCH = "SOURCE_DATE_EPOCH"


def normalize(path: Path, epoch: int) -> None:
    """Rewrite a .tar.gz in place. All members get the date `epoch`, in seconds since 1970."""
    with tarfile.open(path) as archive:
        members = {member.name: (member, _contents(archive, member)) for member in archive.getmembers()}
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.PAX_FORMAT) as plain:
        for _, (member, contents) in sorted(members.items()):
            plain.addfile(_plain(member, epoch), io.BytesIO(contents))
    with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, epoch) as packed:
        packed.write(held.getvalue())


def _contents(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _plain(member: tarfile.TarInfo, epoch: int) -> tarfile.TarInfo:
    """Return a member without its owner and with the date `epoch`."""
    plain = tarfile.TarInfo(member.name)
    plain.type = member.type
    plain.linkname = member.linkname
    plain.size = member.size if member.isreg() else 0
    plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    plain.mtime = epoch
    return plain


def main(words: list[str]) -> int:
    """Rewrite each archive; return 2 if the date or the archives are missing."""
    epoch = os.environ.get(EPOCH, "")
    if not epoch.isdecimal() or not words:
        print(
            f"same_bytes: expected seconds since 1970 in {EPOCH}, and at least one archive, got {epoch!r}",
            file=sys.stderr,
        )
        return 2
    for word in words:
        normalize(Path(word), int(epoch))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
