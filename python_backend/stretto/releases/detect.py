"""Detection of a release's family from file names and small text files, before anything else is downloaded."""

import logging
import re
from collections import Counter
from dataclasses import replace
from importlib import import_module

from stretto.entry_points import FAMILIES, names
from stretto.errors import shown
from stretto.family.plugin import NAME as FAMILY
from stretto.family.plugin import plugins
from stretto.family.recognition import CONFIG, Listing, Match, Needed
from stretto.releases.entry import Companion, ReleaseEntry, RepositoryFiles
from stretto.releases.errors import BadArgument, ReleaseError, Unavailable
from stretto.releases.names import entries, nearest

logger = logging.getLogger(__name__)

MAX_NAME_CHARS = 41
OF_THE_MODEL = ("shape", "smaller", "default_voice", "languages")  # fields of an entry that hold at any commit
FOLDER = "folder"  # name of a release whose own name has no usable character


def detect(
    listing: Listing, repository: str | None = None, part: str | None = None, family: str | None = None
) -> ReleaseEntry:
    """Return the only release in a listing.

    Args:
        listing: Names and small files of a folder or a repository.
        repository: OWNER/NAME, or a folder's path.
        part: Name of one of several releases in the listing, as after `#` on the command line.
        family: Family to accept; None for any.

    Returns:
        Entry without a revision. Licence, gate and sizes are those of the names table, where it has the repository.

    Raises:
        BadArgument: If the listing has several releases, or is a checkpoint.
        Unavailable: If it has none, or only releases that cannot be converted.
    """
    where = repository or "the folder"
    config = listing.json(CONFIG)
    if isinstance(config.get(FAMILY), str):
        raise BadArgument(f"{where}: expected a release, got a checkpoint of {config[FAMILY]}")
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise Unavailable(f"{where}: quantized weights ({shown(method)}); convert the original release")
    found = [match for match in matches(listing) if family in (None, match.family, match.family.replace("_", "-"))]
    if part is not None:
        known = [each.part for each in found if each.part]
        found = [each for each in found if each.part == part]
        if not found:
            raise Unavailable(f"{where}#{part}: no such model; expected {' or '.join(known) or 'no part'}")
    accepted = [each for each in found if not each.refusal]
    if len(accepted) == 1:
        return entry_of(accepted[0], where)
    if accepted:
        raise BadArgument(_several(accepted, where))
    if found:
        raise Unavailable(f"{where}: {found[0].refusal}")
    raise Unavailable(_none(where, config.get("model_type"), repository, family))


def matches(listing: Listing) -> list[Match]:
    """Return the matches of all installed families. A family whose function fails is logged and skipped."""
    found: list[Match] = []
    for reference in dict.fromkeys(plugin.recognise for plugin in plugins()):
        if reference is None:
            continue
        module, _, name = reference.partition(":")
        try:
            found += getattr(import_module(module), name)(listing)
        except ReleaseError:  # of the hub
            raise
        except Exception as error:  # a plug-in may raise anything
            logger.warning("%s: cannot recognise releases: %r", reference, error)
    return found


def entry_of(match: Match, where: str) -> ReleaseEntry:
    """Return the entry for an accepted match.

    If the names table has exactly one release of the repository, its facts about the model are used, too.
    """
    sources = known_sources()
    stem = where.rstrip("/").rpartition("/")[2] + (f"-{match.part}" if match.part else "")
    known = sources.get(where)
    source = RepositoryFiles(where, match.files)
    if known is not None:
        source = replace(source, licence=known.licence, gated=known.gated)
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
        unproved=("revision", "sizes", *(() if known is not None else ("licence", "gated"))),
        **facts,
    )


def plain_name(text: str) -> str:
    """Return a name for a release, made of the characters of a repository's or a folder's name that names may have."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:MAX_NAME_CHARS].rstrip("-.") or FOLDER


def known_sources() -> dict[str, RepositoryFiles]:
    """Return one source for each repository in the names table."""
    return {source.repository: source for entry in entries() for source in entry.repositories}


def _companion(needed: Needed, known: RepositoryFiles | None) -> Companion:
    if known is None:
        return Companion(RepositoryFiles(needed.repository, needed.files), to=needed.to)
    return Companion(replace(known, files=needed.files, exclude=()), to=needed.to)


def _several(accepted: list[Match], where: str) -> str:
    """Return the message for a listing with several releases."""
    families = Counter(each.family for each in accepted)
    if len(families) > 1:
        return f"{where}: fits {' and '.join(sorted(families))}; choose one with --family"
    parts = ", ".join(f"{where}#{each.part}" for each in accepted)
    return f"{where}: {accepted[0].family} repository with {len(accepted)} models: {parts}"


def _none(where: str, kind: object, repository: str | None, family: str | None) -> str:
    """Return the message for a listing without a release."""
    if family is not None:
        return f"{where}: not a release of {family}; installed families: {names(FAMILIES)}"
    reason = f" ({CONFIG}: model_type {shown(kind)})" if kind is not None else ""
    similar = nearest(repository) if repository else []
    return f"{where}: not a release of a supported family{reason}" + (
        f"; did you mean {', '.join(similar)}?" if similar else ""
    )
