"""Archives split into parts of limited size, with a manifest, and their installation.

This module needs only the standard library. The archive is a single `.tar.xz`. A part is a range of its bytes, so files
may be larger than a part. The archive is reproducible: names are sorted, times and owners are zero. An installation
stores parts as they arrive and unpacks them once it has all.
"""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Part:
    """Part of the archive."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All parts in order. `contents` describes the archive for readers."""

    parts: list[Part]
    contents: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        record = json.loads(path.read_text())
        return cls([Part(**record_of_part) for record_of_part in record["parts"]], record["contents"])

    def write(self, folder: Path) -> Path:
        path = folder / MANIFEST
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path


def write_parts(tree: Path, folder: Path, part_bytes: int, contents: dict[str, Any]) -> Manifest:
    """Archive all files below `tree` into parts in `folder`, which must be empty or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    parts = list[Part]()
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w:xz", preset=9) as archive:
            for path in sorted(path for path in tree.rglob("*") if path.is_file()):
                info = tarfile.TarInfo(str(path.relative_to(tree)))
                info.size, info.mode = path.stat().st_size, 0o755 if path.stat().st_mode & 0o100 else 0o644
                with path.open("rb") as source:
                    archive.addfile(info, source)
        whole.seek(0)
        while data := whole.read(part_bytes):
            path = folder / f"part-{len(parts) + 1:02d}"
            path.write_bytes(data)
            parts.append(Part(path.name, len(data), sha256(data).hexdigest()))
    manifest = Manifest(parts, contents)
    manifest.write(folder)
    return manifest


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def unpack(paths: Iterable[Path], into: Path) -> None:
    """Unpack the archive, whose parts in order are `paths`, into a new folder `into`."""
    unfinished = into.with_name(into.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tempfile.TemporaryFile(dir=into.parent) as whole:
        for path in paths:
            whole.write(path.read_bytes())
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r:xz") as archive:
            archive.extractall(unfinished, filter="data")
    unfinished.rename(into)


SITE = "site"
SOURCE = "source"
LIBRARIES = "lib"
KERNELS = "kernels"
REPLIES = "replies"
PARTS = "parts"


class DamagedPart(ValueError):
    """Error for a part that does not match the manifest."""


@dataclass(frozen=True)
class Installation:
    """Bundle below `root`: the parts received so far and, once all have arrived, the tree `root/bundle`."""

    root: Path

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def environment(self) -> str:
        """Shell line with which Python finds the bundle, Triton its compiled kernels, and jobs their replies."""
        site, source, libraries, kernels = (self.bundle / folder for folder in (SITE, SOURCE, LIBRARIES, KERNELS))
        replies = self.bundle / REPLIES
        line = f"export PYTHONPATH={site}:{source}${{PYTHONPATH:+:$PYTHONPATH}} PATH={site / 'bin'}:$PATH"
        line += f" TRITON_CACHE_DIR={kernels}" if kernels.exists() else ""
        line += f" STRETTO_REPLIES={replies}" if replies.exists() else ""
        return line + (f" STRETTO_LIBPYTHON={libraries}" if libraries.exists() else "")

    def write_path_file(self, packages: Path) -> None:
        """Let all processes of an interpreter find the bundle, which has NumPy 1.

        SciPy and scikit-learn of the host may need NumPy 2, so they are hidden. Transformers works without them.
        """
        insertion = f"sys.path.insert(0, {str(self.bundle / SITE)!r})"
        hidden = "sys.modules.update(scipy=None, sklearn=None)"
        (packages / "stretto_bundle.pth").write_text(f"import sys; {insertion}; {hidden}\n")

    def take(self, files: list[Path]) -> list[str]:
        """Verify and store parts; return the names of missing parts. The manifest is one of the files or next to one.

        Raises:
            DamagedPart: A file differs from the manifest; it is not stored.
        """
        kept = self.root / PARTS
        kept.mkdir(parents=True, exist_ok=True)
        manifest = self._manifest(files)
        expected = {stored.name: stored for stored in manifest.parts}
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
        """Return the manifest from the first call. A manifest in a later call must be equal."""
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
        """Unpack the stored parts and delete them; do nothing if the bundle is already unpacked."""
        if self.bundle.exists():
            return
        kept = self.root / PARTS
        names = [stored.name for stored in Manifest.read(kept / MANIFEST).parts]
        unpack((kept / name for name in names), self.bundle)
        for name in names:
            (kept / name).unlink()
