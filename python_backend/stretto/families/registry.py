"""Registry of families: the built-in ones, and those that installed packages register.

A family is a package of these files:

family.py    build(name, vocabulary) -> Family          numbers, ids, tasks and defaults; without torch
prompt.py    open_template(...) -> Template             conversion of a request to rows
reader.py    TEXT_CODEC                                 optional: readable text for families without a tokenizer
model.py                                                optional: parts of the network that stock vLLM lacks
convert.py   convert(release, contents) -> Converted    optional: published files to a checkpoint

Another installed package registers its family by an entry point of the group `stretto.families`. The entry point has
the family's name and refers to such a package, or to one `Family`, which has no prompts. A checkpoint only names a
family. It cannot name code.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from stretto.errors import CheckpointError, shown
from stretto.families.base import Family
from stretto.families.defaults import KEY as SAMPLING
from stretto.families.defaults import with_defaults
from stretto.untrusted_files import LEADS_ELSEWHERE, UNPARSABLE, json_object

NAME, VOCABULARY = "speech_family", "speech_vocabulary"  # keys of a checkpoint's config.json
GROUP = "stretto.families"  # entry point group

SAME_NAME = ("tiny", "bagpiper", "opuslm", "vita_audio", "csm", "qwen3_tts", "qwen3_omni_talker", "chatterbox", "valle")
FOLDERS = {name: name for name in SAME_NAME} | {"opuslm_dialogue": "opuslm", "higgs_audio_v2": "higgs_audio"}


def registered(name: str) -> ModuleType | Family | None:
    """Return the package of a family, or the family itself if that was registered; None if the name is unknown.

    Raises:
        CheckpointError: If two packages register the name, or the registered object cannot be imported.
    """
    if name in FOLDERS:
        return import_module(f"{__package__}.{FOLDERS[name]}")
    found = {each.value: each for each in entry_points(group=GROUP, name=name)}
    if len(found) > 1:
        raise CheckpointError(f"family {name}: expected one installed package, got {sorted(found)}")
    for value, each in found.items():
        try:
            return each.load()
        except (ImportError, AttributeError) as error:
            raise CheckpointError(f"family {name}: cannot import {value}: {error!r}") from error
    return None


def module_of(family: str, role: str) -> ModuleType | None:
    """Return the module of a family's package for a role, for example `prompt`; None if there is none."""
    package = registered(family)
    name = f"{package.__name__}.{role}" if isinstance(package, ModuleType) else None
    return import_module(name) if name and find_spec(name) else None


def read_family(config: Mapping[str, Any]) -> Family:
    """Return the family that `speech_family` in a checkpoint's config.json names.

    Raises:
        CheckpointError: If no such family is registered, `speech_vocabulary` does not fit the family, or
            `speech_sampling` has an invalid value.
    """
    name = config.get(NAME)
    if not isinstance(name, str):
        raise CheckpointError(f"config.json: expected the family's name in {NAME}, got {shown(name)}")
    found = registered(name)
    if isinstance(found, Family):
        return with_defaults(found, config.get(SAMPLING))
    family = module_of(name, "family") if found else None
    if family is None:
        raise CheckpointError(
            f"config.json: {NAME}: unknown family {shown(name)}; known: {sorted(FOLDERS)}, and what installed packages "
            f"register as {GROUP}"
        )
    try:
        built = family.build(name, config.get(VOCABULARY))
    except UNPARSABLE as error:
        raise CheckpointError(f"config.json: {VOCABULARY}: not a vocabulary of {name}: {error!r}") from error
    return with_defaults(built, config.get(SAMPLING))


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
