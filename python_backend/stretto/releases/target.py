"""Release on a command line: a name of the catalogue, a repository on the hub, or a folder.

The family of a repository or folder is detected from file names and small files, before anything else is downloaded.
"""

import hashlib
import logging
import os
import re
import stat
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from stretto.entry_points import FAMILIES, names
from stretto.errors import CheckpointError, shown
from stretto.family.plugin import NAME as FAMILY
from stretto.family.plugin import plugins
from stretto.family.recognition import CONFIG, MAX_TEXT_BYTES, REPOSITORY, Listing, Match, Needed
from stretto.releases.catalogue import (
    LATEST,
    MAX_REPOSITORY_CHARS,
    Companion,
    ReleaseEntry,
    RepositoryFiles,
    entries,
    named,
    nearest,
)
from stretto.releases.messages import BadArgument, ReleaseError, Unavailable
from stretto.releases.store import MAIN
from stretto.untrusted_files import read_text, released_file

MAX_FILES = 10_000  # files of a release; the largest published repository has about 1,000


class Folder(Listing):
    """Listing of the files in `path` and its subfolders, without hidden folders.

    Attributes:
        content: Digest of the names, sizes and times of the files.
    """

    def __init__(self, path: Path):
        """List the files; raise BadArgument if `path` is not a folder, or has no files or too many."""
        if not os.path.isdir(path):  # a Path raises OSError if it is too long
            got = "a file" if os.path.exists(path) else "a path that does not exist"
            raise BadArgument(f"{path}: expected a folder with a release, got {got}")
        self.path = path
        status_of: dict[str, os.stat_result] = {}
        for file in path.rglob("*"):
            name = file.relative_to(path).as_posix()
            if any(component.startswith(".") for component in name.split("/")[:-1]):
                continue
            with suppress(OSError):  # a dangling link
                if stat.S_ISREG((facts := file.stat()).st_mode):
                    status_of[name] = facts
            if len(status_of) > MAX_FILES:
                raise BadArgument(f"{path}: expected a folder with at most {MAX_FILES} files, got more")
        if not status_of:
            raise BadArgument(f"{path}: expected a folder with a release, got an empty folder")
        text = repr([(name, status.st_size, status.st_mtime_ns) for name, status in sorted(status_of.items())])
        self.content = hashlib.sha256(text.encode()).hexdigest()
        super().__init__(frozenset(status_of), {name: status.st_size for name, status in status_of.items()})

    def text(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> str | None:
        if name not in self.names:
            return None
        try:
            return read_text(released_file(self.path, name), max_bytes)
        except CheckpointError:
            return None


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
        listing: Files of the folder; None for other targets.
        part: Name after `#`.
    """

    release: str
    entry: ReleaseEntry | None = None
    repository: str | None = None
    listing: Folder | None = None
    part: str | None = None

    @property
    def folder(self) -> Path | None:
        return None if self.listing is None else self.listing.path

    @property
    def content(self) -> str:
        """Digest of the names, sizes and times of a folder's files; empty for other targets."""
        return "" if self.listing is None else self.listing.content

    @property
    def checkpoint_family(self) -> str | None:
        """Family of a converted checkpoint in the folder, which needs no conversion; None if there is none."""
        family = None if self.listing is None else self.listing.json(CONFIG).get(FAMILY)
        return family if isinstance(family, str) else None


def release_of(text: str) -> str:
    """Return the release named by a command-line argument, in the form used in manifests (a folder: its real path).

    A hub address of something other than a repository raises BadArgument.
    """
    text = PAGE.sub("", text.strip(" "))
    where, hash_sign, part = text.partition("#")
    folder = _folder(where)
    if folder is not None:
        return f"{folder}{hash_sign}{part}"
    where = _repository(where.partition("?")[0].rstrip("/").removesuffix(LATEST))
    return f"{where}{hash_sign}{part}"


def _repository(word: str) -> str:
    """Return the repository whose page of files is `word`, or other text unchanged.

    Another page of a repository raises BadArgument.
    """
    page = FILES.fullmatch(word)
    if page is None:
        return word
    repository = page["repository"]
    if page["path"]:
        raise BadArgument(f"{word}: expected a repository; for one of its models, write {repository}#PART")
    if page["revision"] != MAIN:
        raise BadArgument(f"{word}: expected a repository; write {repository} --revision {page['revision']}")
    return repository


def parse(text: str) -> Target:
    """Return the release that an argument names; raise BadArgument if it is malformed, Unavailable if it names none."""
    text = release_of(text)
    where, _, part = text.partition("#")
    folder = _folder(where)
    if folder is not None:
        return Target(text, listing=Folder(folder), part=part or None)
    if REPOSITORY.fullmatch(where) and len(where) <= MAX_REPOSITORY_CHARS:
        return Target(text, repository=where, part=part or None)
    entry = named(text)
    return Target(entry.name, entry=entry, repository=entry.source.repository)


def _folder(where: str) -> Path | None:
    """Return the real path of a folder; None if the text names a release."""
    try:
        path = Path(where).expanduser()
    except RuntimeError as error:
        raise BadArgument(f"{where}: {error}") from error
    return path.resolve() if where.startswith(PATHS) or ("/" in where and os.path.isdir(path)) else None


logger = logging.getLogger(__name__)

MAX_NAME_CHARS = 41
OF_THE_MODEL = ("shape", "smaller", "default_voice", "languages")  # fields of an entry that no commit changes
FOLDER = "folder"  # name of a release whose own name has no usable character


def detect(
    listing: Listing, repository: str | None = None, part: str | None = None, family: str | None = None
) -> ReleaseEntry:
    """Return an entry without a revision for the only release in a listing.

    Licence and gate come from the names table if it has the repository. If the listing has several releases, or is a
    checkpoint, raise BadArgument. If it has none that can be converted, raise Unavailable.

    Args:
        listing: Names and small files of a folder or a repository.
        repository: OWNER/NAME, or a folder's path.
        part: Name of one of several releases in the listing, as after `#` on the command line.
        family: Family to accept; None for any.
    """
    where = repository or "the folder"
    config = listing.json(CONFIG)
    if isinstance(config.get(FAMILY), str):
        raise BadArgument(f"{where}: expected a release, got a checkpoint of {config[FAMILY]}")
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise Unavailable(f"{where}: quantized weights ({shown(method)}); convert the original release")
    fitting = [match for match in matches(listing) if family in (None, match.family, match.family.replace("_", "-"))]
    if part is not None:
        parts = [fit.part for fit in fitting if fit.part]
        fitting = [fit for fit in fitting if fit.part == part]
        if not fitting:
            raise Unavailable(f"{where}#{part}: no such model; expected {' or '.join(parts) or 'no part'}")
    accepted = [fit for fit in fitting if not fit.refusal]
    if len(accepted) == 1:
        return entry_of(accepted[0], where)
    if accepted:
        raise BadArgument(_several(accepted, where))
    if fitting:
        raise Unavailable(f"{where}: {fitting[0].refusal}")
    raise Unavailable(_none(where, config.get("model_type"), repository, family))


def matches(listing: Listing) -> list[Match]:
    """Return the matches of all installed families. A family whose function fails is logged and skipped."""
    all_matches: list[Match] = []
    for reference in dict.fromkeys(plugin.recognise for plugin in plugins()):
        if reference is None:
            continue
        module, _, name = reference.partition(":")
        try:
            all_matches += getattr(import_module(module), name)(listing)
        except ReleaseError:  # from the hub
            raise
        except Exception as error:  # a plug-in may raise anything
            logger.warning("%s: cannot recognise releases: %r", reference, error)
    return all_matches


def entry_of(match: Match, where: str) -> ReleaseEntry:
    """Return the entry for an accepted match.

    If the names table has exactly one release of the repository, its facts about the model are used, too.
    """
    sources = known_sources()
    stem = where.rstrip("/").rpartition("/")[2] + (f"-{match.part}" if match.part else "")
    source_known = sources.get(where)
    source = RepositoryFiles(where, match.files)
    if source_known is not None:
        source = replace(source, licence=source_known.licence, gated=source_known.gated)
    same = [entry for entry in entries() if entry.source.repository == where and entry.family == match.family]
    facts = {name: getattr(same[0], name) for name in OF_THE_MODEL} if len(same) == 1 else {}
    return ReleaseEntry(
        plain_name(stem),
        match.family,
        source,
        match.convert,
        companions=tuple(_companion(companion, sources.get(companion.repository)) for companion in match.companions),
        needs=match.needs,
        requires=match.requires,
        serves=match.serves,
        unproved=("revision", "sizes", *(() if source_known is not None else ("licence", "gated"))),
        **facts,
    )


def plain_name(text: str) -> str:
    """Return a repository's or folder's name in lower case, with `-` for characters that no release name has."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:MAX_NAME_CHARS].rstrip("-.") or FOLDER


def known_sources() -> dict[str, RepositoryFiles]:
    """Return one source for each repository in the names table."""
    return {source.repository: source for entry in entries() for source in entry.repositories}


def _companion(needed: Needed, published: RepositoryFiles | None) -> Companion:
    if published is None:
        return Companion(RepositoryFiles(needed.repository, needed.files), to=needed.to)
    return Companion(replace(published, files=needed.files, exclude=()), to=needed.to)


def _several(accepted: list[Match], where: str) -> str:
    """Return the message for a listing with several releases."""
    families = Counter(match.family for match in accepted)
    if len(families) > 1:
        return f"{where}: fits {' and '.join(sorted(families))}; choose one with --family"
    parts = ", ".join(f"{where}#{match.part}" for match in accepted)
    return f"{where}: {accepted[0].family} repository with {len(accepted)} models: {parts}"


def _none(where: str, model_type: object, repository: str | None, family: str | None) -> str:
    """Return the message for a listing without a release."""
    if family is not None:
        return f"{where}: not a release of {family}; installed families: {names(FAMILIES)}"
    reason = f" ({CONFIG}: model_type {shown(model_type)})" if model_type is not None else ""
    similar = nearest(repository) if repository else []
    return f"{where}: not a release of a supported family{reason}" + (
        f"; did you mean {', '.join(similar)}?" if similar else ""
    )
