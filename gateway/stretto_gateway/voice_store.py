"""Storage for voices that callers add: recordings with metadata, grouped by owner.

    FOLDER/OWNER/voice_….recording      a line of JSON, then the bytes of the recording

Ids are 128 random bits and contain nothing from the caller. OWNER is a digest of the key with which the voice was
added, so callers with other keys cannot find that voice. If the gateway has no keys, OWNER is `everybody`. Files are
written atomically.
"""

import fcntl
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

LOG = logging.getLogger("stretto_gateway")
EVERYBODY = "everybody"  # owner of all voices if there are no keys
ID = re.compile(r"voice_[0-9a-f]{32}")
OWNER = re.compile(rf"{EVERYBODY}|[0-9a-f]{{64}}")
SUFFIX = ".recording"
UNFINISHED = ".unfinished"
ABANDONED_S = 3600.0  # age of stale files; another gateway that uses the folder finishes its writes within seconds


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """Metadata of a stored voice.

    Attributes:
        text: Transcript of the recording; empty if unknown.
        created_at: Unix time in seconds.
        language: Name or code of the speaker's language; empty if unknown, like the fields below.
        description: Sound and manner of the voice.
    """

    id: str
    name: str
    text: str
    consent: str
    created_at: int
    language: str = ""
    gender: str = ""
    description: str = ""


class TooManyVoices(Exception):
    """Raised if the owner already has the maximum number of voices."""


class VoiceStore:
    """Voices stored in a folder, at most `max_voices` per owner. Methods block during file access."""

    def __init__(self, folder: Path, max_voices: int):
        self._folder = folder
        self._max_voices = max_voices
        self._adding = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob(f"*/*{UNFINISHED}"):
            with suppress(OSError):  # another process has removed it, or the folder is read-only
                if time.time() - left.stat().st_mtime > ABANDONED_S:
                    left.unlink()

    def add(self, owner: str, name: str, text: str, consent: str, recording: bytes, **about: str) -> StoredVoice:
        """Store a voice; raise TooManyVoices if the owner has the maximum number.

        Args:
            text: Transcript of the recording; empty if unknown.
            about: Language, gender and description, if known.
        """
        voice = StoredVoice(f"voice_{secrets.token_hex(16)}", name, text, consent, int(time.time()), **about)
        with self._adding:
            make_owner_folder(self._of(owner))
            with locked(self._of(owner)):
                if sum(1 for _ in self._of(owner).glob(f"*{SUFFIX}")) >= self._max_voices:
                    raise TooManyVoices
                path = self._path(owner, voice.id)
                data = json.dumps(asdict(voice)).encode() + b"\n" + recording
                write_whole(path, path.with_suffix(UNFINISHED), data)
        return voice

    def owners(self) -> list[str]:
        """Return all owners that have, or had, a voice."""
        return sorted(path.name for path in self._folder.iterdir() if OWNER.fullmatch(path.name))

    def all(self, owner: str) -> list[StoredVoice]:
        """Return the owner's voices, oldest first; damaged files are logged and skipped."""
        paths = self._of(owner).glob(f"*{SUFFIX}")
        voices = [voice for path in paths if (voice := self.head(owner, path.stem)) is not None]
        return sorted(voices, key=lambda voice: (voice.created_at, voice.id))

    def find(self, owner: str, voice_id: str) -> tuple[StoredVoice, bytes] | None:
        """Return a voice and its recording, or None if the owner has no such voice."""
        voice = self.head(owner, voice_id)
        if voice is None:
            return None
        try:
            return voice, self._path(owner, voice_id).read_bytes().partition(b"\n")[2]
        except FileNotFoundError:  # deleted a moment ago
            return None

    def remove(self, owner: str, voice_id: str) -> bool:
        """Delete a voice; return True if it existed."""
        try:
            path = self._path(owner, voice_id)
            path.unlink()
            keep_names(path.parent)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def head(self, owner: str, voice_id: str) -> StoredVoice | None:
        """Return a voice without its recording, or None if the owner has no such voice."""
        try:
            with self._path(owner, voice_id).open("rb") as file:
                return _read(file.readline())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            if ID.fullmatch(voice_id):
                # the error's text may contain parts of the file
                LOG.error("%s is not a voice: %s", voice_id, type(error).__name__)
            return None

    def _of(self, owner: str) -> Path:
        if OWNER.fullmatch(owner) is None:
            raise ValueError(f"expected an owner, got {owner!r}")
        return self._folder / owner

    def _path(self, owner: str, voice_id: str) -> Path:
        """Return the path of a voice; raise ValueError for an invalid id."""
        if ID.fullmatch(voice_id) is None:
            raise ValueError(f"expected a voice's id, got {voice_id!r}")
        return self._of(owner) / f"{voice_id}{SUFFIX}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that add voices, so that none exceeds the limit."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def make_owner_folder(folder: Path) -> None:
    """Create an owner's folder, unless it exists."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, exist_ok=True)
        keep_names(folder.parent)


def write_whole(path: Path, unfinished: Path, data: bytes) -> None:
    """Write a file that gets its name only once its data is on the disk.

    Until then, its path is `unfinished`, in the same folder. `VoiceStore` removes such files after a crash.
    """
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        keep_names(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def keep_names(folder: Path) -> None:
    """Flush a folder's directory entries to disk, so that added and deleted files survive a power failure."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _read(line: bytes) -> StoredVoice:
    """Return the voice in a file's first line, without unknown fields; raise ValueError or TypeError if damaged."""
    record = json.loads(line)
    voice = StoredVoice(**{field.name: record[field.name] for field in fields(StoredVoice) if field.name in record})
    for field in fields(voice):
        if not isinstance(getattr(voice, field.name), int if field.name == "created_at" else str):
            raise TypeError(field.name)
    return voice
