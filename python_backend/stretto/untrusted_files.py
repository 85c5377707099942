"""Readers of release and checkpoint files from untrusted sources, which apply limits and execute no code.

Each file must be a regular file, because reading from a FIFO or a device may block. Text size and nesting are limited
before parsing, because C parsers recurse once per level. Unless noted otherwise, failures raise a CheckpointError that
names the file.
"""

import errno
import itertools
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from stretto.errors import CheckpointError, shown

MAX_TEXT_BYTES = 64 << 20  # the largest known tokenizer.json is 35 MB, the largest shard index 10 MB
MAX_YAML_BYTES = 16 << 20  # ESPnet's config.yaml lists every token: 5 MB
MAX_DEPTH = 64  # published files have at most 12 levels
MAX_NODES = 5_000_000  # YAML values, with every alias expanded
MAX_DIGITS = 20  # digits of the largest 64-bit number
# Ends of keys of a config that are numbers of layers, or of codebooks, for each of which a codec has a layer.
LAYERS = ("layer", "layers", "blocks", "depth", "codebooks", "quantizers")
MAX_LAYERS = 1024  # layers of a network; published models have at most about 130
NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-F_:.xob]*")
# Keys of a config.json, at any level, that make transformers import code or vLLM load another model.
LEADS_ELSEWHERE = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "speculators_config",
)
MAX_LINK_FOLDERS = 3  # levels from a file in a Hugging Face snapshot up to the folder `snapshots`
MAX_LINKS = 8  # links that lead to a file, one after the other
SHARED_BLOB = re.compile("[0-9a-f]{64}")
SHARED_MARKER = ".huggingface-shared-blobs"
SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C, if there is one
# Errors that parsers raise for malformed content, such as million-digit numbers or nonexistent dates.
UNPARSABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, yaml.YAMLError)


def regular_file(path: Path, max_bytes: int | None = None) -> Path:
    """Return `path` if it is, or links to, a regular file of at most `max_bytes`, otherwise raise CheckpointError.

    If the file is missing or cannot be examined, raise OSError.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        file_type = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
        raise CheckpointError(f"{path}: expected a regular file, got {file_type}")
    if max_bytes is not None and status.st_size > max_bytes:
        raise CheckpointError(f"{path}: expected at most {max_bytes} bytes, got {status.st_size}")
    return path


def released_file(root: Path, name: str) -> Path:
    """Return the path of a file in a release; raise CheckpointError if it is missing, not regular or outside.

    Links may lead only to files of the same release, because they could otherwise lead to any file on this machine.
    These are the files in `root` and, for a snapshot in the Hugging Face cache, the blobs of its repository
    (`_is_in_cache`).

    Args:
        root: Folder of the release, as given by the user. Links in it are checked, but not those that lead to it.
        name: Path of the file in `root`, with slashes.
    """
    path = root / _relative(root, name)
    try:
        path.resolve(strict=True)
        places = list(_followed(path))
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        missing = isinstance(error, FileNotFoundError)
        raise CheckpointError(f"{path} is missing" if missing else f"{path}: expected a file, got {error!r}") from error
    outside = list(itertools.dropwhile(lambda target: target.is_relative_to(root.resolve()), places))
    if outside and (len(outside) == len(places) or not _is_in_cache(root, outside)):
        raise CheckpointError(f"{path}: expected a file of this release, got a link to {places[-1]}")
    return regular_file(path)


def named_file(root: Path, config: Mapping[str, Any], field: str) -> Path:
    """Return the path of the file in `root` itself that a field of a release's config names."""
    name = entry(config, field, "config.json")
    try:
        return released_file(root, plain_name(root, name))
    except CheckpointError as error:
        raise CheckpointError(f"config.json: {field}: {error}") from error


def plain_name(folder: Path, name: object) -> str:
    """Return `name` if it is a file name without a folder, otherwise raise CheckpointError."""
    if not isinstance(name, str) or name in ("", ".", "..") or name != os.path.basename(name) or "\0" in name:
        raise CheckpointError(f"{folder}: expected a file name without a folder, got {shown(name)}")
    return name


def released_folder(root: Path, name: str) -> Path:
    """Return the path of a folder in a release, which may be missing; raise CheckpointError if it is outside `root`."""
    folder = root / _relative(root, name)
    try:
        target = folder.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise CheckpointError(f"{folder}: expected a folder, got {error!r}") from error
    if not target.is_relative_to(root.resolve()):
        raise CheckpointError(f"{folder}: expected a folder of this release, got a link to {target}")
    return folder


def _relative(root: Path, name: str) -> str:
    """Return `name` if every part of the path is a plain name, otherwise raise CheckpointError."""
    for component in name.split("/"):
        plain_name(root, component)
    return name


def _followed(path: Path) -> Iterator[Path]:
    """Yield `path`, the target of its link, the target of that link and so on.

    Their folders are resolved, so that links of folders are found as well.
    """
    for _ in range(MAX_LINKS):
        target = path.parent.resolve(strict=True) / path.name
        yield target
        if not target.is_symlink():
            return
        path = target.parent / os.readlink(target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_in_cache(root: Path, places: list[Path]) -> bool:
    """Return True if a link that leaves `root` leads to a blob in the Hugging Face cache.

    A file `CACHE/models--A--B/snapshots/REVISION/FILE` is a link to `CACHE/models--A--B/blobs/ETAG`. The blob is a file
    or a link to `CACHE/blobs/XX/HASH` in the store that repositories share (`huggingface_hub`, `utils/_shared_blobs`).
    """
    above = root.resolve()
    for folder in (above, *above.parents)[: MAX_LINK_FOLDERS + 1]:
        if folder.parent.name == "snapshots":
            repository = folder.parent.parent
            blob = places[0]
            shared = places[1:]
            store = repository.parent / "blobs"
            is_shared = not shared or (
                SHARED_BLOB.fullmatch(shared[0].name) is not None
                and shared[0].parent == store / shared[0].name[:2]
                and not (store / SHARED_MARKER).is_symlink()
                and (store / SHARED_MARKER).is_file()
            )
            return blob.parent == repository / "blobs" and len(shared) <= 1 and is_shared
    return False


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a UTF-8 file; raise CheckpointError if it cannot be read or exceeds `max_bytes`."""
    try:
        return regular_file(path, max_bytes).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected text, got {error!r}") from error


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise CheckpointError for any other value or for excessive nesting."""
    try:
        text = regular_file(path, MAX_TEXT_BYTES).read_text(encoding="utf-8")
    except (OSError, *UNPARSABLE) as error:
        raise CheckpointError(f"{path}: expected a JSON object, got {_line(error)}") from error
    return parsed_json(text, path)


def parsed_json(text: str, path: Path | str) -> dict[str, Any]:
    """Return the JSON object in the text of a file; raise CheckpointError as `json_object` does."""
    try:
        record = json.loads(text, parse_int=_integer)
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: expected a JSON object, got {_line(error)}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(record).__name__}")
    _check_depth(record, path)
    return record


def read_json(path: Path) -> dict[str, Any]:
    """Return the contents of a config.json, given the path of the file or of its folder."""
    return json_object(released_file(path, "config.json") if path.is_dir() else path)


def check_layers(record: Any, path: Path | str) -> None:
    """Raise CheckpointError if a config specifies more than MAX_LAYERS layers, at any level.

    Configs and conversion plans have an entry for each layer, so too many layers would exhaust the memory.
    """
    for key, value in record.items() if isinstance(record, Mapping) else enumerate(record):
        if isinstance(value, Mapping | list):
            check_layers(value, path)
        elif str(key).endswith(LAYERS) and isinstance(value, int) and value > MAX_LAYERS:
            raise CheckpointError(f"{path}: {key}: expected at most {MAX_LAYERS} layers, got {value}")


def leading_elsewhere(value: Any) -> str | None:
    """Return the first of the keys LEADS_ELSEWHERE at any level of a JSON value, or None.

    These keys make libraries load code or models from elsewhere.
    """
    if isinstance(value, Mapping):
        key = next((name for name in LEADS_ELSEWHERE if value.get(name) is not None), None)
        return key or next(filter(None, map(leading_elsewhere, value.values())), None)
    return next(filter(None, map(leading_elsewhere, value)), None) if isinstance(value, list) else None


def without_keys(value: Any, names: Iterable[str] = LEADS_ELSEWHERE) -> Any:
    """Return a copy of a JSON value with the keys `names` removed at every level."""
    if isinstance(value, Mapping):
        return {name: without_keys(member, names) for name, member in value.items() if name not in names}
    return [without_keys(member, names) for member in value] if isinstance(value, list) else value


class MissingEntry(CheckpointError):
    """A config lacks the key in the message; the caller adds the name of the config's file."""


def entry(record: Mapping[str, Any], dotted: str, file: str | None = None) -> Any:
    """Return the value of a nested mapping at a dotted path (`a.b.c`); raise CheckpointError if a key is missing.

    Without `file`, the name of the config's file, it is a MissingEntry, to which the caller adds that name.
    """
    value: Any = record
    for depth, key in enumerate(dotted.split(".")):
        if not isinstance(value, Mapping) or key not in value:
            missing = f"{'.'.join(dotted.split('.')[: depth + 1])} is missing"
            raise MissingEntry(missing) if file is None else CheckpointError(f"{file}: {missing}")
        value = value[key]
    return value


def check_value(path: str, actual: object, *supported: object, file: str = "config.json") -> None:
    """Raise CheckpointError unless a value of a config is a supported one; None is a missing value."""
    if actual not in supported:
        expected = " or ".join(shown(value) for value in supported if value is not None) or "no value"
        raise CheckpointError(f"{file}: {path}: expected {expected}, got {shown(actual)}")


def optional_entry(record: Mapping[str, Any], dotted: str) -> Any:
    """Return the value of a nested mapping at a dotted path (`a.b.c`), or None if a key is missing."""
    with suppress(CheckpointError):
        return entry(record, dotted)
    return None


def yaml_mapping(path: Path, loader: Any = None) -> dict[str, Any]:
    """Return the mapping in a YAML file (`parsed_yaml`)."""
    try:
        text = regular_file(path, MAX_YAML_BYTES).read_text(encoding="utf-8")
    except (OSError, *UNPARSABLE) as error:
        raise CheckpointError(f"{path}: expected YAML, got {_line(error)}") from error
    return parsed_yaml(text, path, loader)


def parsed_yaml(text: str, path: Path | str, loader: Any = None) -> dict[str, Any]:
    """Return the mapping in the text of a YAML file; raise CheckpointError if there is none or a limit is exceeded.

    Args:
        loader: A subclass of `yaml.SafeLoader`, for files with tags; None for plain YAML.
    """
    try:
        _check_events(yaml.parse(text, Loader=SAFE_LOADER))
        record = yaml.load(text, Loader=loader or SAFE_LOADER)
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: expected YAML, got {_line(error)}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: expected a mapping, got {type(record).__name__}")
    return record


def _integer(digits: str) -> int:
    """Parse a JSON integer; raise ValueError if it has more than MAX_DIGITS characters."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits, more than {MAX_DIGITS}")
    return int(digits)


def _check_events(events: Iterable[yaml.Event]) -> None:
    """Raise ValueError for YAML that would exhaust the parser's stack, memory or time.

    libyaml's event parser keeps its stack on the heap, so this check is safe. The composer and the constructor,
    however, recurse and take quadratic time for long numbers, and readers of the result would expand every alias.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MAX_DEPTH:
                raise ValueError(f"it has more than {MAX_DEPTH} levels")
            continue
        anchor = None
        size = 0
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias *{event.anchor} refers to a value that contains it, or is missing")
            size = sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            anchor = event.anchor
            size = 1
            may_be_number = event.implicit[0] or event.tag is not None  # plain, or tagged
            if may_be_number and len(event.value) > MAX_DIGITS * 5 and NUMBER.fullmatch(event.value):
                raise ValueError(f"a number has {len(event.value)} characters, more than {MAX_DIGITS * 5}")
        if anchor is not None:
            sizes[anchor] = size
        open_nodes[-1] = open_nodes[-1][0], open_nodes[-1][1] + size
        if open_nodes[-1][1] > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} values")


def _check_depth(record: Any, path: Path | str) -> None:
    """Raise CheckpointError for JSON nested deeper than `MAX_DEPTH`."""
    level = [record]
    depth = 0
    while level:
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{path}: expected at most {MAX_DEPTH} levels of JSON, got more")
        containers = [container for container in level if isinstance(container, Mapping | list)]
        level = [
            value
            for container in containers
            for value in (container.values() if isinstance(container, Mapping) else container)
        ]
        depth += 1


def _line(error: BaseException) -> str:
    return shown(" ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else error, 300)
