"""Encodings of recordings of voices: a cache in memory and encrypted files.

They are stored in files so that a voice is not encoded again after a restart.

    FOLDER/<name>.encoding      nonce (12 bytes), then the array in numpy's format, encrypted with AES-256-GCM

The name and key are derived from the samples of the recording. A file can therefore be decrypted only with the
recording. Encodings of a deleted voice are thus useless, and are eventually removed.
"""

import json
import logging
import os
import secrets
import time
from collections import OrderedDict
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
SUFFIX = ".encoding"
UNFINISHED = ".unfinished"
CACHE_BYTES = 256 << 20  # maximum total size of all files
UNUSED_S = 30 * 86_400.0  # time without use after which a file is removed
NONCE_BYTES = 12


@dataclass(frozen=True)
class EncodedFiles:
    """Folder of encodings made by one encoder. Any thread or process may call its methods.

    Attributes:
        folder: Folder, which only this user can access.
        encoder: Identity of the encoder; files written for other encoders are not used.
        max_bytes: Maximum total size of all files; the least recently used ones are removed.
        clock: Time in seconds since the epoch.
    """

    folder: Path
    encoder: bytes
    max_bytes: int = CACHE_BYTES
    clock: Callable[[], float] = time.time

    @classmethod
    def of_checkpoint(cls, folder: Path, checkpoint: Path, device: str) -> "EncodedFiles | None":
        """Return the stored encodings of a checkpoint's encoders, or None if `folder` is unusable.

        Args:
            folder: Folder of the files; created if it is missing.
            checkpoint: Folder of the checkpoint. If one of its files changes, earlier encodings are ignored.
            device: torch device of the encoders, because results differ between devices.
        """
        paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        stats = [(str(path.relative_to(checkpoint)), path.stat()) for path in paths]
        files = [(name, status.st_size, status.st_mtime_ns) for name, status in stats]
        made_by = json.dumps([version("stretto"), device, files]).encode()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files_of_encoders = cls(folder, blake2b(made_by).digest())
            files_of_encoders.remove_old()
        except OSError as error:
            logger.warning("cannot store encodings of voices in %s: %s", folder, error.strerror)
            return None
        return files_of_encoders

    def read(self, digest: bytes) -> np.ndarray | None:
        """Return the stored encoding of a recording, given a digest of its samples, or None if there is none."""
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
            logger.warning("removing a damaged encoding of a voice")
            with suppress(OSError):
                path.unlink()
            return None
        encoding: np.ndarray = np.load(BytesIO(plain), allow_pickle=False)
        return encoding

    def write(self, digest: bytes, encoded: np.ndarray) -> None:
        """Store an encoding; if the disk is full or the folder is missing, only log the failure."""
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
            logger.warning("cannot store the encoding of a voice: %s", error.strerror)
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def remove_old(self) -> None:
        """Remove files unused for UNUSED_S, and the least recently used in excess of `max_bytes`."""
        stored: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            if path.suffix in (SUFFIX, UNFINISHED):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    stored.append((stat.st_mtime, stat.st_size, path))
        left = self.max_bytes
        oldest = self.clock() - UNUSED_S
        for used, size, path in sorted(stored, reverse=True):
            left -= size
            if left < 0 or used < oldest:
                path.unlink(missing_ok=True)

    def _derived(self, digest: bytes, purpose: bytes) -> bytes:
        return blake2b(digest, key=self.encoder, person=purpose, digest_size=32).digest()

    def _path(self, digest: bytes) -> Path:
        return self.folder / f"{self._derived(digest, b'name').hex()}{SUFFIX}"

    def _cipher(self, digest: bytes) -> "AESGCM":
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # imported only if voices are stored

        return AESGCM(self._derived(digest, b"key"))


_current: ContextVar[list[EncodedFiles]] = ContextVar("encoded_files")


@contextmanager
def stored_in(files: EncodedFiles | None) -> Iterator[None]:
    """Make encoders opened in the `with` block store their results in `files`, unless None."""
    token = _current.set([] if files is None else [files])
    try:
        yield
    finally:
        _current.reset(token)


def files_of_encoder() -> EncodedFiles | None:
    """Return the files for the next encoder that is opened, or None outside `stored_in`.

    The files of each encoder have a separate identity.
    """
    opened = _current.get([])
    if not opened:
        return None
    number = len(opened)
    opened.append(replace(opened[0], encoder=blake2b(opened[0].encoder + number.to_bytes(4)).digest()))
    return opened[-1]


MAX_BYTES = 32 << 20  # 30 s of audio take at most 108 kB, in the family with the most codes
ENTRY_BYTES = 512  # overhead per entry


class CachedEncoder:
    """Audio encoder (to codes or a vector) with an LRU cache of its results, bounded in bytes.

    The cache key is a hash of the samples, so results are shared by all clients. A result that is used again, such as
    the encoding of a stored voice, is also written to a file if the encoder was opened within `stored_in`.
    """

    def __init__(self, encode: Callable[[np.ndarray], np.ndarray], max_bytes: int = MAX_BYTES):
        self._encode = encode
        self._max_bytes = max_bytes
        self._latest: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._num_bytes = 0
        self._files = files_of_encoder()
        self._unwritten: set[bytes] = set()  # keys of results that have been used only once

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return the encoder's result for mono `pcm`, float32 [n]."""
        key = blake2b(pcm.tobytes()).digest()
        if key in self._latest:
            self._latest.move_to_end(key)
            if self._files is not None and key in self._unwritten:
                self._unwritten.discard(key)
                self._files.write(key, self._latest[key])
            return self._latest[key]
        encoded = None if self._files is None else self._files.read(key)
        if encoded is None:
            encoded = self._encode(pcm)
            self._unwritten.add(key)
        self._latest[key] = encoded
        self._num_bytes += encoded.nbytes + ENTRY_BYTES
        while self._num_bytes > self._max_bytes:
            dropped, latest = self._latest.popitem(last=False)
            self._num_bytes -= latest.nbytes + ENTRY_BYTES
            self._unwritten.discard(dropped)
        return encoded
