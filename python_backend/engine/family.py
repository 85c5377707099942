"""Which family a checkpoint belongs to: the name in its config.json."""

from importlib import import_module

from transformers import PretrainedConfig

from python_backend.errors import CheckpointError
from python_backend.families.base import Family
from python_backend.families.registry import get_family


def family_of(config: PretrainedConfig) -> Family:
    """The family that `speech_family` names: one of the registry, or `module:ATTRIBUTE` outside it."""
    name = config.to_dict().get("speech_family")
    if not isinstance(name, str):
        raise CheckpointError(f"config.json: expected the family's name in speech_family, got {name!r}")
    if ":" in name:
        module, attribute = name.split(":")
        return getattr(import_module(module), attribute)
    try:
        return get_family(name)
    except KeyError as error:
        raise CheckpointError(f"config.json: speech_family: {error.args[0]}") from error
