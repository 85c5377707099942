"""Release on a command line: a name of the names table, a repository on the hub, or a folder."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from stretto.family.plugin import NAME as FAMILY
from stretto.family.recognition import CONFIG, REPOSITORY
from stretto.releases.entry import MAX_REPOSITORY_CHARS, ReleaseEntry
from stretto.releases.errors import BadArgument
from stretto.releases.listing import Folder
from stretto.releases.models import MAIN
from stretto.releases.names import LATEST, named

# Beginning of a repository's page on the hub, and the rest of a page of its files.
PAGE = re.compile(r"^((https?://)?(www\.)?(huggingface\.co|hf\.co)/|hf://)")
FILES = re.compile(r"(?P<repository>[^/#?]+/[^/#?]+)/(tree|blob|resolve)/(?P<revision>[^/#?]+)(?P<path>/[^#?]*)?")
PATHS = ("/", "./", "../", "~")


@dataclass(frozen=True)
class Target:
    """Release that a command names.

    Attributes:
        release: Name in the names table, OWNER/NAME with an optional `#part`, or real path of a folder.
        entry: Entry of the names table; None for other targets.
        repository: OWNER/NAME on the hub; None for a folder.
        listing: Files of the folder; None for others.
        part: Name after `#`, or None.
    """

    release: str
    entry: ReleaseEntry | None = None
    repository: str | None = None
    listing: Folder | None = None
    part: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder; None for others."""
        return None if self.listing is None else self.listing.path

    @property
    def content(self) -> str:
        """Digest of the names, sizes and times of a folder's files; empty for other targets."""
        return "" if self.listing is None else self.listing.content

    @property
    def checkpoint_family(self) -> str | None:
        """Family of a converted checkpoint in the folder, which can be served as it is; None for others."""
        found = None if self.listing is None else self.listing.json(CONFIG).get(FAMILY)
        return found if isinstance(found, str) else None


def release_of(text: str) -> str:
    """Return the release that a word of the command line names, as manifests have it: a folder by its real path.

    Raises:
        BadArgument: If it is the address of something else than a repository.
    """
    text = PAGE.sub("", text.strip(" "))
    place, hash_sign, part = text.partition("#")
    folder = _folder(place)
    if folder is not None:
        return f"{folder}{hash_sign}{part}"
    place = _repository(place.partition("?")[0].rstrip("/").removesuffix(LATEST))
    return f"{place}{hash_sign}{part}"


def _repository(place: str) -> str:
    """Return the repository of a page of files on the hub; other text unchanged.

    Raises:
        BadArgument: If the page is not that of a repository's main files, with what to write instead.
    """
    page = FILES.fullmatch(place)
    if page is None:
        return place
    repository = page["repository"]
    if page["path"]:
        raise BadArgument(f"{place}: expected a repository; for one of its models, write {repository}#PART")
    if page["revision"] != MAIN:
        raise BadArgument(f"{place}: expected a repository; write {repository} --revision {page['revision']}")
    return repository


def parse(text: str) -> Target:
    """Return the release that a word of the command line names.

    Raises:
        BadArgument: If it is malformed.
        Unavailable: If no release has this name.
    """
    text = release_of(text)
    place, _, part = text.partition("#")
    folder = _folder(place)
    if folder is not None:
        return Target(text, listing=Folder(folder), part=part or None)
    if REPOSITORY.fullmatch(place) and len(place) <= MAX_REPOSITORY_CHARS:
        return Target(text, repository=place, part=part or None)
    entry = named(text)
    return Target(entry.name, entry=entry, repository=entry.source.repository)


def _folder(place: str) -> Path | None:
    """Return the real path of a folder; None if the text names a release."""
    try:
        path = Path(place).expanduser()
    except RuntimeError as error:
        raise BadArgument(f"{place}: {error}") from error
    return path.resolve() if place.startswith(PATHS) or ("/" in place and os.path.isdir(path)) else None
