"""Which family a checkpoint belongs to, as vLLM sees its config.json."""

from transformers import PretrainedConfig

from stretto.families.base import Family
from stretto.families.registry import read_family


def family_of(config: PretrainedConfig) -> Family:
    """The family that the checkpoint's config.json names; CheckpointError when it names none."""
    return read_family(config.to_dict())
