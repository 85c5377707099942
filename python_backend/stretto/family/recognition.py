"""Recognition of a family's releases by file names and small text files.

A family's `recognise` function takes a `Listing` and returns a `Match` for each release of the family in it. It opens
no weights file, and imports neither torch nor vLLM.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import SAFE_LOADER, optional_entry, parsed_json, parsed_yaml

MAX_TEXT_BYTES = 1 << 20  # default limit of a file that is read to recognise a release
MAX_INDEX_BYTES = 10 << 20  # the largest published index of shards
MAX_TOKENIZER_BYTES = 35 << 20  # the largest published tokenizer.json
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # neither an option nor a path out of a folder
CONFIG = "config.json"
SINGLE = "model.safetensors"
QWEN_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
TOKENIZER = (*QWEN_TOKENIZER, "added_tokens.json", "special_tokens_map.json")


# Arguments for the converter of a release with a codec in another repository.
CODEC_FROM_COMPANION = (
    *("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}"),
    *("--codec", "{companion1}"),
)


class _PlainLoader(SAFE_LOADER):
    """YAML loader that reads values with tags, such as those of hyperpyyaml, as None."""


_PlainLoader.add_multi_constructor("", lambda loader, suffix, node: None)


class Listing:
    """File names of a folder or a repository, with the text of small files.

    Attributes:
        names: Paths of the files, with `/` as separator.
        sizes: Sizes in bytes by path, as far as they are known.
    """

    def __init__(self, names: frozenset[str], sizes: Mapping[str, int]):
        self.names = names
        self.sizes = sizes
        self._records: dict[str, dict[str, Any]] = {}

    def text(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> str | None:
        """Return the text of a file; None if there is no such file, or it is not UTF-8 text of at most `max_bytes`."""
        raise NotImplementedError

    def json(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
        """Return the JSON object in a file; empty if there is no such file, or it contains something else."""
        return self._record(name, max_bytes, parsed_json)

    def yaml(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
        """Return the mapping in a YAML file, with None for values that have tags; empty if there is none."""
        return self._record(name, max_bytes, lambda text, name: parsed_yaml(text, name, _PlainLoader))

    def present(self, *patterns: str) -> tuple[str, ...]:
        """Return the patterns (fnmatch) that match at least one file."""
        return tuple(pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in self.names))

    def weights(self, index: str = "model.safetensors.index.json") -> tuple[str, ...]:
        """Return `model.safetensors`, or an index with the files that it lists; empty if there are neither."""
        if index.startswith(SINGLE) and SINGLE in self.names:
            return (SINGLE,)
        listed = self.json(index, MAX_INDEX_BYTES).get("weight_map")
        names = {str(file) for file in listed.values()} if isinstance(listed, Mapping) else set()
        return (index, *sorted(names)) if names and names <= self.names else ()

    def beside(self, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str, list[str]]]:
        """Yield each YAML file, its folder (empty, or with a final `/`), and the folder's files with the suffixes."""
        for name in sorted(self.names):
            folder = name[: name.rfind("/") + 1]
            if name.endswith(".yaml"):
                files = sorted(file for file in self.names if file.startswith(folder) and file.endswith(suffixes))
                yield name, folder, [file for file in files if "/" not in file[len(folder) :]]

    def _record(self, name: str, max_bytes: int, parse: Callable[[str, str], dict[str, Any]]) -> dict[str, Any]:
        if name not in self._records:
            text = self.text(name, max_bytes)
            try:
                self._records[name] = {} if text is None else parse(text, name)
            except CheckpointError:
                self._records[name] = {}
        return self._records[name]


@dataclass(frozen=True)
class Needed:
    """Further repository that a recognised release needs.

    Attributes:
        repository: OWNER/NAME.
        to: Folder for the repository's files in the view, which joins the release and its companions
            (`releases.catalogue.Companion`).
    """

    repository: str
    files: tuple[str, ...]
    to: str | None = None


@dataclass(frozen=True)
class Match:
    """A release in a listing.

    Attributes:
        convert: Arguments for the converter, see `ReleaseEntry` of `stretto.releases.catalogue`.
        part: Name that distinguishes the releases of one listing; empty if there can be only one.
        refusal: Reason why the release is not accepted; the empty string if it is accepted.
        serves: False if the release can be converted but not served.
        needs: Inputs without which a request fails.
        requires: Options of the converter that the user must give, such as `codec` for `--codec FOLDER`.
    """

    family: str
    files: tuple[str, ...] = ()
    convert: tuple[str, ...] = ()
    part: str = ""
    companions: tuple[Needed, ...] = ()
    refusal: str = ""
    serves: bool = True
    needs: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()


def unexpected(path: str, expected: str, value: object) -> str:
    """Return the reason to refuse a release because of a value in config.json, at a dotted path."""
    return f"{CONFIG}: {path}: expected {expected}, got {shown(value)}"


@dataclass(frozen=True)
class OneRelease:
    """Function `recognise` for repositories with one release each, identified by fields of config.json.

    Attributes:
        refused: Reasons to refuse other values of `model_type`.
        expected: Supported values by dotted path; None means a missing field.
        needed: Files that a release must have, beside config.json and the weights.
        pickled: Name of the weights' file, if it is no safetensors file.
        convert: Arguments for the converter.
    """

    family: str
    title: str
    model_type: str
    refused: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ("generation_config.json", *TOKENIZER)
    convert: tuple[str, ...] = ("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}")
    companions: tuple[Needed, ...] = ()
    pickled: str = ""

    def __call__(self, listing: Listing) -> list[Match]:
        """Return the release in a listing, if there is one."""
        config = listing.json(CONFIG)
        model_type = str(config.get("model_type"))
        if model_type in self.refused:
            return [Match(self.family, refusal=self.refused[model_type])]
        if model_type != self.model_type:
            return []
        weights = listing.present(self.pickled) if self.pickled else listing.weights()
        refusal = self._refusal(config, {*listing.names} if weights else set())
        files = (*weights, CONFIG, *self.needed, *listing.present(*self.optional))
        return [Match(self.family, files, self.convert, companions=self.companions, refusal=refusal)]

    def _refusal(self, config: Mapping[str, Any], names: set[str]) -> str:
        """Return the reason to refuse a release with the files `names`, which are empty if it has no weights."""
        for path, values in self.expected.items():
            value = optional_entry(config, path)
            if value not in values:
                expected = " or ".join(repr(value) for value in values if value is not None) or "no value"
                return f"{self.title}: {unexpected(path, expected, value)}"
        if names.issuperset(self.needed) and names:
            return ""
        others = [self.pickled or f"{SINGLE} or the files of its index", *self.needed]
        last = others.pop()
        return f"{self.title}: expected {', '.join(others)}{' and ' if others else ''}{last}"
