"""Encodings of recordings in files, so that a voice is encoded once and not again after a restart.

    FOLDER/<name>.encoding      nonce (12 bytes), then the array in numpy's format, encrypted with AES-256-GCM

Name and key are derived from the recording's samples. A file can therefore be decrypted only with the recording.
Encodings of a deleted voice are useless, and are removed later.
"""

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

logger = logging.getLogger(__name__)
SUFFIX, UNFINISHED = ".encoding", ".unfinished"
MAX_BYTES = 256 << 20  # of all files together
UNUSED_S = 30 * 86_400.0  # age at which an unused file is removed
NONCE_BYTES = 12


@dataclass(frozen=True)
class EncodedFiles:
    """Folder of encodings by one encoder. Methods may be called by any thread or process.

    Attributes:
        folder: Folder, accessible to this user only.
        encoder: Identity of the encoder; files of other encoders are not used.
        max_bytes: Maximum size of all files; the least recently used are removed.
        clock: Time in seconds since the epoch.
    """

    folder: Path
    encoder: bytes
    max_bytes: int = MAX_BYTES
    clock: Callable[[], float] = time.time

    @classmethod
    def of_checkpoint(cls, folder: Path, checkpoint: Path, device: str) -> "EncodedFiles | None":
        """Return the files for the encoders of a checkpoint; None, with a log line, if the folder cannot be used.

        Args:
            folder: Folder of the files; created if it is missing.
            checkpoint: Folder of the checkpoint. A changed file makes its earlier encodings unused.
            device: torch device of the encoders, because results differ between devices.
        """
        paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        stats = [(str(path.relative_to(checkpoint)), path.stat()) for path in paths]
        files = [(name, found.st_size, found.st_mtime_ns) for name, found in stats]
        made_by = json.dumps([version("stretto"), device, files]).encode()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = cls(folder, blake2b(made_by).digest())
            found.remove_old()
        except OSError as error:
            logger.warning("encodings of voices are not stored: %s: %s", folder, error.strerror)
            return None
        return found

    def read(self, digest: bytes) -> np.ndarray | None:
        """Return the encoding of the recording with a digest of its samples; None if there is none."""
        from cryptography.exceptions import InvalidTag

        path = self._path(digest)
        try:
            stored = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        try:
            plain = self._cipher(digest).decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):  # ValueError: the nonce is cut short
            logger.warning("a damaged encoding of a voice is removed")
            with suppress(OSError):
                path.unlink()
            return None
        found: np.ndarray = np.load(BytesIO(plain), allow_pickle=False)
        return found

    def write(self, digest: bytes, encoded: np.ndarray) -> None:
        """Store an encoding; if the disk is full, or the folder is gone, log that it is not stored."""
        plain = BytesIO()
        np.save(plain, encoded, allow_pickle=False)
        nonce = secrets.token_bytes(NONCE_BYTES)
        encrypted = self._cipher(digest).encrypt(nonce, plain.getvalue(), None)
        path = self._path(digest)
        unfinished = path.with_name(f"{secrets.token_hex(8)}{UNFINISHED}")
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(nonce + encrypted)
            unfinished.replace(path)
            self.remove_old()
        except OSError as error:
            logger.warning("an encoding of a voice is not stored: %s", error.strerror)
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def remove_old(self) -> None:
        """Remove files unused for UNUSED_S, and the least recently used ones beyond `max_bytes`."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            if path.suffix in (SUFFIX, UNFINISHED):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    found.append((stat.st_mtime, stat.st_size, path))
        left, oldest = self.max_bytes, self.clock() - UNUSED_S
        for used, size, path in sorted(found, reverse=True):
            left -= size
            if left < 0 or used < oldest:
                path.unlink(missing_ok=True)

    def _derived(self, digest: bytes, purpose: bytes) -> bytes:
        return blake2b(digest, key=self.encoder, person=purpose, digest_size=32).digest()

    def _path(self, digest: bytes) -> Path:
        return self.folder / f"{self._derived(digest, b'name').hex()}{SUFFIX}"

    def _cipher(self, digest: bytes) -> "AESGCM":
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # only where voices are stored

        return AESGCM(self._derived(digest, b"key"))


_current: ContextVar[list[EncodedFiles]] = ContextVar("encoded_files")


@contextmanager
def stored_in(files: EncodedFiles | None) -> Iterator[None]:
    """Make encoders that are opened in the `with` block store their results in `files`; no effect for None."""
    token = _current.set([] if files is None else [files])
    try:
        yield
    finally:
        _current.reset(token)


def files_of_encoder() -> EncodedFiles | None:
    """Return the files for the next encoder that is opened, each with its own identity; None outside `stored_in`."""
    opened = _current.get([])
    if not opened:
        return None
    number = len(opened)
    opened.append(replace(opened[0], encoder=blake2b(opened[0].encoder + number.to_bytes(4)).digest()))
    return opened[-1]
