"""Published releases by name: the files, the licence and the conversion of each.

A family's `releases.json` lists such records:

    {"releases": [{"name": "voice", "family": "example", "source": {"repository": "acme/voice", …}, …}, …]}

Unknown keys are errors. `evidence` has the source of each fact about the hub (revision, sizes, licence, gate). Facts
without a source are listed in `unproved`, and have the value for "unknown".
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from stretto.entry_points import FAMILIES, OWN, installed
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.plugin import FamilyPlugin, plugin
from stretto.family.recognition import REPOSITORY
from stretto.records.json_record import JsonRecord
from stretto.releases.messages import BadArgument, Unavailable

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")
MAX_REPOSITORY_CHARS = 96
REVISION = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
COMMERCIAL = ("yes", "no", "conditions", "unknown")
GATES = ("no", "auto", "manual", "unknown")
NEEDS = ("recording", "instruct")
FACTS = ("revision", "licence", "gated", "sizes", "files", "shape")  # facts that `unproved` and `evidence` refer to
MAX_LICENCE_FACTS = 3
UNTESTED = "random weights only; never with these weights"
# placeholders of `convert`
REPO = "repo"
VIEW = "view"
COMPANION = "companion"
PLACEHOLDER = re.compile(r"\{(\w*)\}")


def matching(pattern: str, description: str) -> Any:
    """Return the annotation for a text that matches a regular expression completely."""
    return Field(pattern=f"^({pattern})$", description=description)


def one_of(texts: Sequence[str]) -> Any:
    """Return the annotation for a text that is one of `texts`."""
    return matching("|".join(texts), f"one of {', '.join(texts)}")


Name = Annotated[str, matching(NAME.pattern, f"a name like {NAME.pattern}")]
Repository = Annotated[str, Field(max_length=MAX_REPOSITORY_CHARS), matching(REPOSITORY.pattern, "OWNER/NAME")]
Digest = Annotated[str, matching(SHA256.pattern, "64 hexadecimal digits")]
Fact = Annotated[str, one_of(FACTS)]


@dataclass(frozen=True)
class Licence:
    """Licence of a repository's files.

    Attributes:
        id: SPDX identifier, or the licence's title.
        url: Page with the text, or the model card that names the licence.
        commercial: One of COMMERCIAL: whether commercial use is permitted.
        facts: Conditions that a user should know, at most three lines.
    """

    id: str = "unknown"
    url: str = ""
    commercial: Annotated[str, one_of(COMMERCIAL)] = "unknown"
    facts: Annotated[
        tuple[str, ...], Field(max_length=MAX_LICENCE_FACTS, description=f"at most {MAX_LICENCE_FACTS} texts")
    ] = ()


@dataclass(frozen=True)
class RepositoryFiles:
    """Files of a repository on the hub.

    Attributes:
        repository: OWNER/NAME, or the path of a folder on this machine.
        revision: Commit; None for the newest.
        files: Patterns (fnmatch) of paths in the repository. Each must match at least one file.
        exclude: Patterns of paths to leave out.
        gated: One of GATES: how the hub grants access.
        sizes: Known file sizes in bytes, by path.
        sha256: Known SHA-256 sums, by path.
    """

    repository: Repository
    files: Annotated[tuple[str, ...], Field(min_length=1, description="a list of at least one pattern")]
    revision: Annotated[str, matching(REVISION.pattern, "40 hexadecimal digits")] | None = None
    exclude: tuple[str, ...] = ()
    licence: Licence = Licence()
    gated: Annotated[str, one_of(GATES)] = "unknown"
    sizes: Mapping[str, NonNegativeInt] = field(default_factory=dict)
    sha256: Mapping[str, Digest] = field(default_factory=dict)


@dataclass(frozen=True)
class Companion:
    """Further repository that a release needs.

    Attributes:
        option: Option of the command that asks for it, such as `--words`; None if it is always needed.
        to: Folder for its files in the release's folder, for converters that expect all files in one folder.
    """

    source: RepositoryFiles
    option: str | None = None
    to: str | None = None


@dataclass(frozen=True)
class ReleaseEntry:
    """A release that can be installed by name.

    Attributes:
        convert: Arguments of `stretto convert FAMILY`, without `--out`. The placeholders are folders: `{repo}` of the
            release, `{companion1}`… of the companions, and `{view}` of the release and all companions with a `to`.
        shape: Numbers of a `Backbone` (`stretto.machine.sizing`) for estimates of memory and speed. `speaker` has the
            family and the numbers of a second model, which speaks the text of the first one. `codec` is a name in
            `FamilyPlugin.decoders`, if it is not the family's codec.
        smaller: Name of a smaller release that may replace this one.
        tasks: Tasks of the family that the release supports; empty for all.
        needs: Inputs without which a request fails: some of NEEDS.
        requires: Options of the converter that the user must give, such as `codec` for `--codec FOLDER`.
        checked: Weights and date of the last test; the empty string for random weights only.
        serves: False if the release can be converted but not served.
        evidence: Source of each fact about the hub, by its name in FACTS.
        unproved: Facts without a source.
    """

    name: Name
    family: str
    source: RepositoryFiles
    convert: tuple[str, ...]
    aliases: tuple[Name, ...] = ()
    companions: tuple[Companion, ...] = ()
    shape: Mapping[str, Any] | None = None
    smaller: Name | None = None
    default_voice: str | None = None
    languages: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    needs: tuple[Annotated[str, one_of(NEEDS)], ...] = ()
    requires: tuple[str, ...] = ()
    checked: str = ""
    serves: bool = True
    evidence: Mapping[Fact, str] = field(default_factory=dict)
    unproved: tuple[Fact, ...] = ()

    @property
    def repositories(self) -> tuple[RepositoryFiles, ...]:
        return (self.source, *(companion.source for companion in self.companions))

    def arguments(self, repo: Path, companions: Sequence[Path | None] = (), view: Path | None = None) -> list[str]:
        """Return the arguments of `stretto convert`, beginning with the family, without `--out`.

        Args:
            companions: Folders of the companions, in their order; None for one that is not used.
            view: Folder with the files of the release and of its companions, if `convert` uses one.
        """
        places = {REPO: str(repo), VIEW: str(view)}
        places |= {f"{COMPANION}{number}": str(folder) for number, folder in enumerate(companions, 1)}
        # Not `str.format`: a word may contain the name of a release's file, with any characters.
        words = (PLACEHOLDER.sub(lambda match: places.get(match[1], match[0]), word) for word in self.convert)
        return [self.family.replace("_", "-"), *words]


def placeholders(word: str) -> list[str]:
    """Return the names of the placeholders in a word of `convert`."""
    return PLACEHOLDER.findall(word)


@dataclass(frozen=True)
class ReleaseTable:
    """Contents of a family's `releases.json`."""

    releases: tuple[ReleaseEntry, ...]


TABLE: JsonRecord[ReleaseTable] = JsonRecord(ReleaseTable)


def read_table(table: str, where: str) -> tuple[ReleaseEntry, ...]:
    """Return the entries in the JSON of a `releases.json`; raise CheckpointError if it is invalid."""
    try:
        entries_read = TABLE.read(where, table.encode()).releases
    except InvalidRequest as error:
        raise CheckpointError(str(error)) from None
    for entry in entries_read:
        supported = {REPO, VIEW, *(f"{COMPANION}{number}" for number in range(1, len(entry.companions) + 1))}
        used = {name for word in entry.convert for name in placeholders(word)}
        if not used <= supported:
            expected = f"the placeholders {', '.join(sorted(supported))}"
            raise CheckpointError(f"{where}: {entry.name}.convert: expected {expected}, got {shown(sorted(used))}")
    return entries_read


logger = logging.getLogger(__name__)

MAX_NEAREST = 3
LATEST = ":latest"  # tag that registries of other programs use; a release has no tags


def entries() -> tuple[ReleaseEntry, ...]:
    """Return the releases of all installed families, sorted by name.

    A family whose table is invalid is logged and skipped. An entry of another package is left out if this package has
    an entry or a family of that name, or another package has such an entry.
    """
    own_entries: list[ReleaseEntry] = []
    others: list[ReleaseEntry] = []
    for is_own, family_plugin in _plugins():
        try:
            (own_entries if is_own else others).extend(
                entry for entry in read_entries(family_plugin) if entry.family == family_plugin.name
            )
        except CheckpointError as error:
            logger.warning("%s", error)
    taken = {name for entry in own_entries for name in (entry.name, *entry.aliases)}
    taken |= {registered.name.replace("_", "-") for registered in installed(FAMILIES) if registered.distribution == OWN}
    uses = Counter(name for other in others for name in (other.name, *other.aliases))
    accepted = []
    for entry in others:
        odd = [name for name in (entry.name, *entry.aliases) if name in taken or uses[name] > 1]
        if odd:
            logger.warning("%s: %s: another package has a release of this name", entry.family, odd[0])
        else:
            accepted.append(entry)
    return tuple(sorted([*own_entries, *accepted], key=lambda entry: entry.name))


def find(name: str) -> ReleaseEntry | None:
    """Return the release with this name or alias, or None."""
    return next((entry for entry in entries() if name in (entry.name, *entry.aliases)), None)


def typed_name(text: str) -> str:
    """Return the release name that `text` means with its capitals, spaces or underscores, or an empty string."""
    name = re.sub(r"[\s_:]+", "-", text.strip().lower().removesuffix(LATEST))
    return name if NAME.fullmatch(name) else ""


def named(text: str) -> ReleaseEntry:
    """Return the release with this name, which may contain capitals, spaces or underscores.

    If there is none, raise Unavailable, or BadArgument if `text` cannot be a name.
    """
    name = typed_name(text)
    entry = find(name)
    if entry is not None:
        return entry
    similar = nearest(name or text)
    hint = f"; did you mean {', '.join(similar)}?" if similar else ""
    if not NAME.fullmatch(text):
        raise BadArgument(f"expected a name, OWNER/NAME or an existing folder, got {text!r}{hint}")
    folder = f"; for the folder, write ./{text}" if Path(text).is_dir() else ""
    raise Unavailable(f"{text}: no release of this name{hint}{folder} (stretto list --all)")


def nearest(text: str) -> list[str]:
    """Return up to three names that resemble `text`, or whose repositories have the same owner."""
    releases = entries()
    names = get_close_matches(
        text.lower(), [name for entry in releases for name in (entry.name, *entry.aliases)], MAX_NEAREST
    )
    owner, slash, last = text.rpartition("/")
    if slash:
        names = get_close_matches(last.lower(), [entry.name for entry in releases], MAX_NEAREST)
        names += [entry.name for entry in releases if entry.source.repository.split("/")[0].lower() == owner.lower()]
    return list(dict.fromkeys(names))[:MAX_NEAREST]


def read_entries(family_plugin: FamilyPlugin) -> tuple[ReleaseEntry, ...]:
    """Return all entries of a family's `releases.json`, if any, which families may share; or raise CheckpointError."""
    return () if family_plugin.releases is None else _read_file(family_plugin.releases)


def resource(reference: str) -> str:
    """Return the text of package data, given as "package:file"; raise CheckpointError if it cannot be read."""
    package, _, name = reference.partition(":")
    try:
        return files(package).joinpath(name).read_text(encoding="utf-8")
    except (ImportError, OSError, UnicodeDecodeError, TypeError) as error:
        raise CheckpointError(f"{reference}: expected package data, got {error!r}") from error


@cache
def _read_file(reference: str) -> tuple[ReleaseEntry, ...]:
    return read_table(resource(reference), reference)


def _plugins() -> Iterator[tuple[bool, FamilyPlugin]]:
    """Yield the plug-in of each family that can be imported, with True for those of this package."""
    for registered in installed(FAMILIES):
        try:
            family_plugin = plugin(registered.name)
        except CheckpointError as error:
            logger.warning("%s", error)
            continue
        if family_plugin is not None:
            yield registered.distribution == OWN, family_plugin
