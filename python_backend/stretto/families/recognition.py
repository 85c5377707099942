"""Recognition of a family's releases by file names and small text files.

A family's `recognise` function takes a `Listing` and returns a `Match` for each release of the family in it. It opens
no weights file, and imports neither torch nor vLLM.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from stretto.errors import CheckpointError
from stretto.untrusted_files import parsed_json, parsed_yaml

MAX_TEXT_BYTES = 1 << 20  # default limit of a file that is read to recognise a release


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads values with tags, such as those of hyperpyyaml, as None."""


_PlainLoader.add_multi_constructor("", lambda loader, suffix, node: None)


class Listing:
    """File names of a folder or a repository, with the text of small files.

    Attributes:
        names: Paths of the files, with `/` as separator.
        sizes: Sizes in bytes by path, as far as they are known.
    """

    def __init__(self, names: frozenset[str], sizes: Mapping[str, int]):
        self.names, self.sizes = names, sizes

    def text(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> str | None:
        """Return the text of a file; None if there is no such file, or it is not UTF-8 text of at most `max_bytes`."""
        raise NotImplementedError

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file; empty if there is no such file, or it contains something else."""
        text = self.text(name)
        try:
            return {} if text is None else parsed_json(text, name)
        except CheckpointError:
            return {}

    def yaml(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
        """Return the mapping in a YAML file, whose tags are ignored; empty if there is none."""
        text = self.text(name, max_bytes)
        try:
            return {} if text is None else parsed_yaml(text, name, _PlainLoader)
        except CheckpointError:
            return {}


@dataclass(frozen=True)
class Needed:
    """Further repository that a recognised release needs.

    Attributes:
        repository: OWNER/NAME.
        files: Patterns of its files.
        to: Folder for its files in the view, see `Companion` of `stretto.releases.entry`.
    """

    repository: str
    files: tuple[str, ...]
    to: str | None = None


@dataclass(frozen=True)
class Match:
    """A release in a listing.

    Attributes:
        family: Family of the release.
        files: Patterns of its files.
        convert: Arguments for the converter, see `Entry` of `stretto.releases.entry`.
        part: Name that distinguishes the releases of one listing; empty if there can be only one.
        companions: Further repositories.
        refusal: Reason why the release is not accepted; the empty string if it is accepted.
        serves: False if the release can be converted but not served.
        needs: Inputs without which a request fails.
    """

    family: str
    files: tuple[str, ...] = ()
    convert: tuple[str, ...] = ()
    part: str = ""
    companions: tuple[Needed, ...] = ()
    refusal: str = ""
    serves: bool = True
    needs: tuple[str, ...] = ()
