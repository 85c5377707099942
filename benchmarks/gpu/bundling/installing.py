"""Installation of a bundle: store parts as they arrive, and unpack them when all are there. Standard library only."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.bundling.parts import MANIFEST, Manifest, sha256_of, unpack

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
