"""Sampling defaults of a release: its generation_config.json as `speech_sampling` of config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stretto.convert.release import Release
from stretto.errors import CheckpointError, shown
from stretto.families.base import Family
from stretto.families.defaults import DRAWN, with_defaults
from stretto.untrusted_files import json_object, released_file

FILE = "generation_config.json"


def prefixed(prefix: str, segment: str) -> dict[str, tuple[str, ...]]:
    """Return the fields of a segment for keys that begin with `prefix`: temperature, top-k, top-p, sampling switch."""
    names: dict[str, tuple[str, ...]] = {f"{prefix}{name}": (f"{segment}.{name}",) for name in DRAWN}
    return names | {f"{prefix}do_sample": (f"{segment}.temperature",)}


# Keys of transformers, for the audio segment.
AUDIO = prefixed("", "audio") | {"min_p": ("min_p",), "repetition_penalty": ("repetition_penalty",)}


def read_defaults(
    release: Release, family: Family, names: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, Any], list[str]]:
    """Return `speech_sampling` from a release's generation_config.json, and notes on the values used.

    Lengths are ignored: a family has its own, and a request may set them.

    Args:
        release: The release; the file is next to its config, or in the folder of its weights.
        family: Family with the defaults of its authors' code.
        names: Fields of `speech_sampling` by keys of the file; a `…do_sample` that is false makes a segment greedy.

    Raises:
        CheckpointError: If a value is invalid; the message names its key.
    """
    path = _place(release) if names else None
    if path is None:
        return {}, []
    found = json_object(path)
    taken: dict[str, Any] = {}
    keys = [name for name in names if found.get(name) is not None]
    if family.penalized is None:
        keys = [name for name in keys if "repetition_penalty" not in names[name]]
    is_switch = {name: name.endswith(("do_sample", "dosample")) for name in keys}
    for name in sorted(keys, key=lambda name: is_switch[name]):  # switches last, because they override the temperature
        value = found[name]
        if is_switch[name]:
            if not isinstance(value, bool):
                raise CheckpointError(f"{path}: {name}: expected true or false, got {shown(value)}")
            if value:
                continue
            value = 0.0
        for field in names[name]:
            segment, _, last = field.rpartition(".")
            part = {last: value}
            try:
                with_defaults(family, {segment: part} if segment else part)
            except CheckpointError as error:
                expected = str(error).partition(": expected ")[2]
                raise CheckpointError(f"{path}: {name}: expected {expected}") from error
            (taken.setdefault(segment, {}) if segment else taken).update(part)
    said = ", ".join(f"{name} {found[name]}" for name in keys)
    return taken, [f"defaults from {FILE}: {said}"] if keys else []


def _place(release: Release) -> Path | None:
    """Return the path of the file; None if the release has none."""
    folders = [release.model if release.model.is_dir() else release.model.parent]
    if release.config is not None:
        folders.insert(0, release.config.parent)
    return next((released_file(folder, FILE) for folder in folders if (folder / FILE).exists()), None)
