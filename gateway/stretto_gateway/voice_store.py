"""Voices that callers have brought, on disk: each is a recording, what is said in it, and who may use it.

    FOLDER/OWNER/voice_….recording      a line of JSON, and the recording's bytes as they came

An id is drawn, of 128 bits, and no part of it is a caller's. OWNER is a digest of the key with which a voice was
brought, or `everybody` where the gateway has no keys: who has another key finds nothing. A file appears whole, or not
at all.
"""

import json
import logging
import os
import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

LOG = logging.getLogger("stretto_gateway")
ID, OWNER = re.compile(r"voice_[0-9a-f]{32}"), re.compile(r"everybody|[0-9a-f]{64}")
SUFFIX, UNFINISHED = ".recording", ".unfinished"
ABANDONED_S = 3600.0  # after so long nobody writes on: another gateway over the same folder does so in seconds


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """What is known of a voice. text: what is said in its recording, '' where nobody says. consent: what is known of
    the speaker's. created_at: in seconds since 1970."""

    id: str
    name: str
    text: str
    consent: str
    created_at: int


class TooManyVoices(Exception):
    """An owner has as many as one may have."""


class VoiceStore:
    """The voices in a folder, of at most `max_voices` for each owner. Its methods read and write files."""

    def __init__(self, folder: Path, max_voices: int):
        self._folder, self._max_voices, self._adding = folder, max_voices, threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob(f"*/*{UNFINISHED}"):
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > ABANDONED_S:
                    left.unlink()

    def add(self, owner: str, name: str, text: str, consent: str, recording: bytes) -> StoredVoice:
        """Keep a voice; TooManyVoices where there is no room for it, OSError where the disk has none."""
        voice = StoredVoice(f"voice_{secrets.token_hex(16)}", name, text, consent, int(time.time()))
        with self._adding:
            self._of(owner).mkdir(mode=0o700, exist_ok=True)
            if sum(1 for _ in self._of(owner).glob(f"*{SUFFIX}")) >= self._max_voices:
                raise TooManyVoices
            self._write(self._path(owner, voice.id), voice, recording)
        return voice

    def _write(self, path: Path, voice: StoredVoice, recording: bytes) -> None:
        unfinished = path.with_suffix(UNFINISHED)
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(json.dumps(asdict(voice)).encode() + b"\n" + recording)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def all(self, owner: str) -> list[StoredVoice]:
        """The owner's voices, the oldest first; a file that is damaged is left out, and named in the log."""
        paths = self._of(owner).glob(f"*{SUFFIX}")
        found = [voice for path in paths if (voice := self._head(owner, path.stem)) is not None]
        return sorted(found, key=lambda voice: (voice.created_at, voice.id))

    def find(self, owner: str, voice_id: str) -> tuple[StoredVoice, bytes] | None:
        """A voice and its recording; None where the owner has no such voice."""
        voice = self._head(owner, voice_id)
        if voice is None:
            return None
        try:
            return voice, self._path(owner, voice_id).read_bytes().partition(b"\n")[2]
        except FileNotFoundError:  # deleted a moment ago
            return None

    def remove(self, owner: str, voice_id: str) -> bool:
        """Forget a voice; whether there was one."""
        try:
            self._path(owner, voice_id).unlink()
        except (FileNotFoundError, ValueError):
            return False
        return True

    def _head(self, owner: str, voice_id: str) -> StoredVoice | None:
        try:
            with self._path(owner, voice_id).open("rb") as file:
                return _read(file.readline())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            if ID.fullmatch(voice_id):
                LOG.error("%s is no voice: %s", voice_id, type(error).__name__)  # its text may be of the file
            return None

    def _of(self, owner: str) -> Path:
        if OWNER.fullmatch(owner) is None:
            raise ValueError(f"expected an owner, got {owner!r}")
        return self._folder / owner

    def _path(self, owner: str, voice_id: str) -> Path:
        """Where a voice lies; ValueError for what is no id."""
        if ID.fullmatch(voice_id) is None:
            raise ValueError(f"expected a voice's id, got {voice_id!r}")
        return self._of(owner) / f"{voice_id}{SUFFIX}"


def _read(line: bytes) -> StoredVoice:
    """The first line of a voice's file; ValueError or TypeError where it is not one."""
    voice = StoredVoice(**json.loads(line))
    for each in fields(voice):
        if not isinstance(getattr(voice, each.name), int if each.name == "created_at" else str):
            raise TypeError(each.name)
    return voice
