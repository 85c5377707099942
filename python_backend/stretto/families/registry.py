"""Registry of families: plug-ins by name, and the family of a checkpoint.

A checkpoint only names a family. It cannot name code.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stretto.errors import CheckpointError, shown
from stretto.families.base import Family
from stretto.families.defaults import KEY as SAMPLING
from stretto.families.defaults import with_defaults
from stretto.families.plugin import FamilyPlugin
from stretto.plugins import FAMILIES, Installed, find, installed, names
from stretto.untrusted_files import LEADS_ELSEWHERE, UNPARSABLE, json_object

logger = logging.getLogger(__name__)

NAME, VOCABULARY = "speech_family", "speech_vocabulary"  # keys of a checkpoint's config.json


def plugin(name: str) -> FamilyPlugin | None:
    """Return the plug-in of a family, or None if no installed package registers the name.

    Raises:
        CheckpointError: If several packages register the name, or its object cannot be imported.
    """
    found = find(FAMILIES, name)
    return None if found is None else _loaded(found)


def plugins() -> Iterator[FamilyPlugin]:
    """Yield the plug-ins of all installed families; one that cannot be imported is logged and left out."""
    for each in installed(FAMILIES):
        try:
            yield _loaded(each)
        except CheckpointError as error:
            logger.warning("%s", error)


def _loaded(found: Installed) -> FamilyPlugin:
    loaded = found.load()
    if isinstance(loaded, Family):
        return FamilyPlugin(found.name, lambda vocabulary: loaded)
    if not isinstance(loaded, FamilyPlugin):
        expected = f"a FamilyPlugin as {found.entry_point.value}"
        raise CheckpointError(f"family {found.name}: expected {expected}, got {type(loaded).__name__}")
    return loaded


def read_family(config: Mapping[str, Any]) -> Family:
    """Return the family that `speech_family` in a checkpoint's config.json names.

    Raises:
        CheckpointError: If no such family is registered, `speech_vocabulary` does not fit the family, or
            `speech_sampling` has an invalid value.
    """
    found = read_plugin(config)
    try:
        built = found.build(config.get(VOCABULARY))
    except UNPARSABLE as error:
        raise CheckpointError(f"config.json: {VOCABULARY}: not a vocabulary of {found.name}: {error!r}") from error
    return with_defaults(built, config.get(SAMPLING))


def read_plugin(config: Mapping[str, Any]) -> FamilyPlugin:
    """Return the plug-in of the family that a checkpoint's config.json names; CheckpointError if there is none."""
    name = config.get(NAME)
    if not isinstance(name, str):
        raise CheckpointError(f"config.json: expected the family's name in {NAME}, got {shown(name)}")
    found = plugin(name)
    if found is None:
        raise CheckpointError(f"config.json: {NAME}: unknown family {shown(name)}; installed: {names(FAMILIES)}")
    return found


def plugin_at(checkpoint: Path) -> FamilyPlugin:
    """Return the plug-in of the checkpoint in a folder; CheckpointError if its config.json names none."""
    return read_plugin(config_at(checkpoint))


def family_at(checkpoint: Path) -> Family:
    """Return the family of the checkpoint in a folder; CheckpointError if its config.json is not a checkpoint's."""
    return read_family(config_at(checkpoint))


def config_at(checkpoint: Path) -> dict[str, Any]:
    """Return the config.json of the checkpoint in a folder.

    Raises:
        CheckpointError: If it cannot be read, or has a key that makes libraries load code or weights from elsewhere.
    """
    record = json_object(checkpoint / "config.json")
    odd = [name for name in LEADS_ELSEWHERE if record.get(name) is not None]
    if odd:
        raise CheckpointError(f"{checkpoint / 'config.json'}: {odd[0]}: expected a checkpoint without it")
    return record
