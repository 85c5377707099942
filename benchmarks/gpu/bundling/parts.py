"""Split archive with parts of limited size, and a manifest with their checksums. Standard library only.

The archive is one `.tar.xz`; a part is a range of its bytes, so any file fits. The same tree gives the same bytes:
names are sorted, times and owners are zero.
"""

import hashlib
import io
import json
import lzma
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

MANIFEST = "manifest.json"
BUFFER = 1 << 20


@dataclass(frozen=True)
class Part:
    """One part."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All parts in order. contents: description of the archive, for information."""

    parts: list[Part]
    contents: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read the JSON that `write` writes."""
        record = json.loads(path.read_text())
        return cls([Part(**part) for part in record["parts"]], record["contents"])

    def write(self, folder: Path) -> Path:
        """Write `manifest.json` to `folder`."""
        path = folder / MANIFEST
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path


class PartWriter(io.RawIOBase):
    """A file whose bytes go to `folder`/part-01, part-02, ... of at most `part_bytes` each."""

    def __init__(self, folder: Path, part_bytes: int):
        self._folder, self._part_bytes = folder, part_bytes
        self._file: BinaryIO | None = None
        self._left, self._digest = 0, hashlib.sha256()
        self.parts: list[Part] = []

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Write all of `data`, over as many parts as necessary."""
        view = memoryview(data).cast("B")
        written = len(view)
        while view:
            if self._left == 0:
                self._begin()
            assert self._file is not None
            piece, view = view[: self._left], view[self._left :]
            self._file.write(piece)
            self._digest.update(piece)
            self._left -= len(piece)
        return written

    def _begin(self) -> None:
        self._end()
        self._file = (self._folder / f"part-{len(self.parts) + 1:02d}").open("wb")
        self._left, self._digest = self._part_bytes, hashlib.sha256()

    def _end(self) -> None:
        if self._file is None:
            return
        size = self._file.tell()
        self._file.close()
        self.parts.append(Part(Path(self._file.name).name, size, self._digest.hexdigest()))
        self._file = None

    def close(self) -> None:
        """Complete the last part."""
        if not self.closed:
            self._end()
        super().close()


def write_parts(tree: Path, folder: Path, part_bytes: int, contents: dict[str, Any]) -> Manifest:
    """Archive all files below `tree` into parts in `folder`, which must be empty or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    with PartWriter(folder, part_bytes) as writer:
        with (
            lzma.open(cast(IO[bytes], writer), "wb", preset=9) as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            for path in sorted(path for path in tree.rglob("*") if path.is_file()):
                info = tarfile.TarInfo(str(path.relative_to(tree)))
                info.size, info.mode = path.stat().st_size, 0o755 if path.stat().st_mode & 0o100 else 0o644
                with path.open("rb") as source:
                    archive.addfile(info, source)
        writer.close()
        manifest = Manifest(writer.parts, contents)
    manifest.write(folder)
    return manifest


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Joined(io.RawIOBase):
    """Concatenated bytes of several files."""

    def __init__(self, paths: Iterable[Path]):
        self._files: Iterator[BinaryIO] = (path.open("rb") for path in paths)
        self._file: BinaryIO | None = next(self._files, None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._file is not None:
            count = self._file.readinto(buffer)  # type: ignore[attr-defined]
            if count:
                return count
            self._file.close()
            self._file = next(self._files, None)
        return 0


def unpack(paths: Iterable[Path], into: Path) -> None:
    """Unpack the archive of the parts `paths`, in order, into a new folder `into`."""
    unfinished = into.with_name(into.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    joined = io.BufferedReader(_Joined(paths), BUFFER)
    with lzma.open(joined) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
        archive.extractall(unfinished, filter="data")
    unfinished.rename(into)


SITE, SOURCE, LIBRARIES, PARTS = "site", "source", "lib", "parts"


class DamagedPart(ValueError):
    """A part does not match the manifest."""


@dataclass(frozen=True)
class Installation:
    """The bundle below `root`: parts as received, then the tree `root/bundle`."""

    root: Path

    @property
    def bundle(self) -> Path:
        """Folder of the unpacked tree."""
        return self.root / "bundle"

    @property
    def environment(self) -> str:
        """Line for the shell that lets Python find the bundle."""
        site, source, libraries = (self.bundle / part for part in (SITE, SOURCE, LIBRARIES))
        line = f"export PYTHONPATH={site}:{source}${{PYTHONPATH:+:$PYTHONPATH}} PATH={site / 'bin'}:$PATH"
        return line + (f" STRETTO_LIBPYTHON={libraries}" if libraries.exists() else "")

    def take(self, files: list[Path]) -> list[str]:
        """Verify and store parts; return the names of missing parts.

        Args:
            files: Parts, with their manifest among or next to them.

        Raises:
            DamagedPart: A file differs from the manifest; nothing of it is stored.
        """
        kept = self.root / PARTS
        kept.mkdir(parents=True, exist_ok=True)
        manifest = self._manifest(files)
        expected = {part.name: part for part in manifest.parts}
        for file in files:
            if file.name == MANIFEST:
                continue
            if file.name not in expected:
                raise DamagedPart(f"{file.name}: not one of {list(expected)}")
            if sha256_of(file) != expected[file.name].sha256:
                raise DamagedPart(f"{file}: its checksum is not the manifest's; send it again")
            if file.resolve() != (kept / file.name).resolve():
                shutil.copyfile(file, kept / file.name)
        return [name for name in expected if not (kept / name).exists()]

    def _manifest(self, files: list[Path]) -> Manifest:
        """Return the manifest of the first call, which any later one must equal."""
        kept = self.root / PARTS / MANIFEST
        beside = {file.parent / MANIFEST for file in files} | {file for file in files if file.name == MANIFEST}
        for path in sorted(path for path in beside if path.exists()):
            if kept.exists() and kept.read_bytes() != path.read_bytes():
                raise DamagedPart(f"{path}: of another bundle than the one begun in {self.root}")
            if not kept.exists():
                shutil.copyfile(path, kept)
        if not kept.exists():
            raise FileNotFoundError(f"{MANIFEST}: give it with the first parts")
        return Manifest.read(kept)

    def finish(self) -> None:
        """Unpack the stored parts and delete them; do nothing if that has been done."""
        if self.bundle.exists():
            return
        kept = self.root / PARTS
        names = [part.name for part in Manifest.read(kept / MANIFEST).parts]
        unpack((kept / name for name in names), self.bundle)
        for name in names:
            (kept / name).unlink()
