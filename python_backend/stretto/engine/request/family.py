"""Family of a checkpoint, given vLLM's copy of its config.json."""

from transformers import PretrainedConfig

from stretto.families.base import Family
from stretto.families.registry import read_family


def family_of(config: PretrainedConfig) -> Family:
    """Return the family that the checkpoint's config.json names; raise CheckpointError if it names none."""
    return read_family(config.to_dict())
