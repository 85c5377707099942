"""Storage for the pronunciation dictionary of each key, in the folder of the voices.

    FOLDER/OWNER/pronunciations.json      as the request option; written atomically

OWNER is a digest of the key, as for voices, so that no other key reads or uses the dictionary.
"""

import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from stretto_contract.lexicon_files import read_lexicon_file
from stretto_contract.pronunciation import DictionaryEntry, InvalidEntry, entries_record
from stretto_gateway.voice_store import OWNER, UNFINISHED, keep_names, make_owner_folder, write_whole

LOG = logging.getLogger("stretto_gateway")
NAME = "pronunciations.json"
NUM_CACHED = 64  # dictionaries in memory


class PronunciationStore:
    """Pronunciation dictionaries in a folder, one per owner. Methods block during file access.

    Args:
        max_bytes: Maximum size of a dictionary as JSON.
    """

    def __init__(self, folder: Path, max_entries: int, max_bytes: int):
        self._folder = folder
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._cached = OrderedDict[str, tuple[tuple[int, ...], tuple[DictionaryEntry, ...]]]()

    def find(self, owner: str) -> tuple[DictionaryEntry, ...]:
        """Return the owner's dictionary, which is empty if there is none; a damaged one is logged and empty."""
        path = self._path(owner)
        try:
            status = path.stat()
            state = status.st_mtime_ns, status.st_size, status.st_ino
            if (cached := self._cached.get(owner)) is not None and cached[0] == state:
                return cached[1]
            entries = read_lexicon_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except InvalidEntry:  # the message may contain parts of the file
            LOG.error("%s is not a dictionary", path)
            return ()
        self._cached[owner] = state, entries
        while len(self._cached) > NUM_CACHED:
            self._cached.popitem(last=False)
        return entries

    def replace(self, owner: str, entries: Sequence[DictionaryEntry]) -> None:
        """Store a dictionary in place of the owner's earlier one; raise InvalidEntry if it is too large."""
        if len(entries) > self._max_entries:
            raise InvalidEntry("", f"at most {self._max_entries} entries", f"{len(entries)}")
        data = json.dumps(entries_record(entries)).encode()
        if len(data) > self._max_bytes:
            raise InvalidEntry("", f"at most {self._max_bytes} bytes of JSON", f"{len(data)}")
        path = self._path(owner)
        make_owner_folder(path.parent)
        # a name of its own, because two requests may replace the dictionary at once
        write_whole(path, path.with_name(f"{secrets.token_hex(8)}{UNFINISHED}"), data)

    def remove(self, owner: str) -> bool:
        """Delete the owner's dictionary; return True if it existed."""
        path = self._path(owner)
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            keep_names(path.parent)
            return True
        return False

    def _path(self, owner: str) -> Path:
        if OWNER.fullmatch(owner) is None:
            raise ValueError(f"expected an owner, got {owner!r}")
        return self._folder / owner / NAME
