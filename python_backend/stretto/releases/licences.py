"""Licences of releases, from the names table or the hub, and the user's acceptance."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stretto.errors import CheckpointError
from stretto.releases.catalogue import Licence, RepositoryFiles
from stretto.releases.messages import NotAllowed, line, plain
from stretto.untrusted_files import read_text

ACCEPTED = "accepted.jsonl"  # lines with repository, licence identifier and digest of the licence's text
TEXT = re.compile(r"(^|/)(licen[cs]e|copying)[^/]*$", re.IGNORECASE)  # paths of licence texts
# Licence identifiers of model cards: SPDX identifier, and whether commercial use is permitted.
KNOWN = {
    "apache-2.0": ("Apache-2.0", "yes"),
    "mit": ("MIT", "yes"),
    "bsd-2-clause": ("BSD-2-Clause", "yes"),
    "bsd-3-clause": ("BSD-3-Clause", "yes"),
    "isc": ("ISC", "yes"),
    "cc0-1.0": ("CC0-1.0", "yes"),
    "cc-by-4.0": ("CC-BY-4.0", "yes"),
    "cc-by-sa-4.0": ("CC-BY-SA-4.0", "conditions"),
    "cc-by-nc-4.0": ("CC-BY-NC-4.0", "no"),
    "cc-by-nc-sa-4.0": ("CC-BY-NC-SA-4.0", "no"),
    "cc-by-nc-nd-4.0": ("CC-BY-NC-ND-4.0", "no"),
}
WORDS = {
    "yes": "commercial use: yes",
    "no": "commercial use: no",
    "conditions": "commercial use: under conditions",
    "unknown": "commercial use: unknown",
}


def licence_of(source: RepositoryFiles, stated: str | None, endpoint: str) -> Licence:
    """Return the licence of a source from the names table or, if it is unknown there, as stated by the model card."""
    if source.licence.id != "unknown" or stated is None:
        return source.licence
    name, commercial = KNOWN.get(stated.lower(), (stated, "unknown"))
    return Licence(name, f"{endpoint}/{source.repository}", commercial)


def described(licence: Licence) -> str:
    """Return a licence and whether it permits commercial use, in words."""
    name = "no licence is stated" if licence.id == "unknown" else licence.id
    return f"{name}, {WORDS[licence.commercial]}"


def text_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a digest of a repository's licence texts; empty if it has none.

    Args:
        files: The repository's files by path, with the hash that the hub lists as `sha256` or, if that is None, `oid`.
    """
    texts = [(name, str(facts["sha256"] or facts["oid"])) for name, facts in files.items() if TEXT.search(name)]
    return hashlib.sha256(json.dumps(sorted(texts)).encode()).hexdigest() if texts else ""


def require(
    licences: Mapping[str, Licence], folder: Path, accepts: bool, digests: Mapping[str, str] | None = None
) -> None:
    """Ask the user to accept licences that restrict commercial use or are unknown, once for each repository and text.

    If one is not accepted, raise NotAllowed.

    Args:
        folder: Folder of the installed models, which keeps the answers.
        accepts: True if the user has accepted them on the command line.
        digests: `text_digest` of each repository.
    """
    accepted = _read(folder / ACCEPTED)
    asked = {name: licence for name, licence in licences.items() if licence.commercial != "yes"}
    records = {name: json.dumps([name, licence.id, (digests or {}).get(name, "")]) for name, licence in asked.items()}
    new = {name: licence for name, licence in asked.items() if records[name] not in accepted}
    for name, licence in new.items():
        line("licence", f"{name}: {described(licence)} {licence.url}".rstrip())
        for fact in licence.facts:
            line("", fact)
    if not new:
        return
    if not accepts and not _answer():
        name, licence = next(iter(new.items()))
        where = f": read {licence.url}, then use" if licence.url else ": use"
        raise NotAllowed(f"{name}: {described(licence)}{where} --accept-license")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ACCEPTED).open("a", encoding="utf-8") as file:
        file.writelines(f"{records[name]}\n" for name in new)


def _answer() -> bool:
    """Return the user's answer; False if standard input or standard error is no terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(plain("Accept? [y/N] "), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _read(path: Path) -> set[str]:
    try:
        return set(read_text(path).splitlines())
    except CheckpointError:  # no licence has been accepted yet
        return set()
