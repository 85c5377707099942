"""Families by name: which folder holds each, and what the files there offer.

family.py    build(name, vocabulary) -> Family          the numbers, ids, tasks and defaults; no torch
prompt.py    open_template(...) -> Template             a request to rows
reader.py    TEXT_CODEC                                 optional: text without a tokenizer, for people
model.py                                                optional: what of the network stock vLLM does not have
convert.py   convert(release, contents) -> Converted    optional: published files to a checkpoint
"""

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from stretto.errors import CheckpointError
from stretto.families.base import Family

NAME, VOCABULARY = "speech_family", "speech_vocabulary"  # keys of a checkpoint's config.json

SAME_NAME = ("tiny", "bagpiper", "opuslm", "vita_audio", "csm", "qwen3_tts", "qwen3_omni_talker", "chatterbox", "valle")
FOLDERS = {name: name for name in SAME_NAME} | {"opuslm_dialogue": "opuslm", "higgs_audio_v2": "higgs_audio"}


def module_of(family: str, role: str) -> ModuleType | None:
    """The file of a family's folder for a role, as `prompt`; None where it has none."""
    name = f"{__package__}.{FOLDERS[family]}.{role}" if family in FOLDERS else None
    return import_module(name) if name and find_spec(name) else None


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
    family = module_of(name, "family")
    if family is None:
        raise CheckpointError(f"config.json: {NAME}: unknown family {name!r}; known: {sorted(FOLDERS)}")
    try:
        return family.build(name, config.get(VOCABULARY))
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
