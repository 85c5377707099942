"""Families by name, each over the vocabulary that its checkpoint has."""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from stretto.errors import CheckpointError
from stretto.families.bagpiper.family import BagpiperVocabulary, bagpiper
from stretto.families.base import Family
from stretto.families.opuslm.family import OpusVocabulary, opuslm, opuslm_dialogue
from stretto.families.tiny.family import TINY

NAME, VOCABULARY = "speech_family", "speech_vocabulary"  # keys of a checkpoint's config.json

BUILDERS: dict[str, Callable[[Mapping[str, Any] | None], Family]] = {
    "tiny": lambda record: TINY,
    "bagpiper": lambda record: bagpiper(BagpiperVocabulary.from_record(record) if record else BagpiperVocabulary()),
    "opuslm": lambda record: opuslm(OpusVocabulary.from_record(record) if record else OpusVocabulary()),
    "opuslm_dialogue": lambda record: opuslm_dialogue(
        OpusVocabulary.from_record(record) if record else OpusVocabulary()
    ),
}


def read_family(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint with this config.json: `speech_family` names it, or is `module:ATTRIBUTE`.

    CheckpointError when it names none, or when `speech_vocabulary` is not one of that family.
    """
    name = config.get(NAME)
    if not isinstance(name, str):
        raise CheckpointError(f"config.json: expected the family's name in {NAME}, got {name!r}")
    if ":" in name:
        module, attribute = name.split(":")
        return getattr(import_module(module), attribute)
    if name not in BUILDERS:
        raise CheckpointError(f"config.json: {NAME}: unknown family {name!r}; known: {sorted(BUILDERS)}")
    try:
        return BUILDERS[name](config.get(VOCABULARY))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: {VOCABULARY}: not a vocabulary of {name}: {error!r}") from error


def family_at(checkpoint: Path) -> Family:
    """The family of the checkpoint in a folder; CheckpointError when its config.json cannot be read, or names none."""
    return read_family(config_at(checkpoint))


def config_at(checkpoint: Path) -> dict[str, Any]:
    """The config.json of the checkpoint in a folder; CheckpointError when it cannot be read."""
    return json_object(checkpoint / "config.json")


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; CheckpointError when there is none that can be read."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON object, got {error!r}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record
