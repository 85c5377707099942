"""What `convert.py` of a family says of its releases: the seam that each fills."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from stretto.checkpoints.release import Release, Tokenizer
from stretto.checkpoints.tensors import Plan
from stretto.families.registry import module_of


@dataclass(frozen=True)
class Contents:
    """What the files of one release hold, tensors left where they are.

    config: config.yaml or config.json. backbone: the numbers of the backbone that it names. dtype: what tensors are
    written in.
    """

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    backbone: dict[str, Any]
    dtype: str


@dataclass(frozen=True)
class Network:
    """A network of its own in a release, to be written into a folder of the checkpoint: its `config.json`, and what
    becomes of its tensors. tensors: where these lie, if not in the file of the model."""

    folder: str
    record: dict[str, Any]
    plan: Plan
    tensors: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Converted:
    """A release's checkpoint. record: config.json. plan: what becomes of each tensor. dropped: how the names of those
    begin that are not served. folded: names of those that others are written with. networks: what goes to folders."""

    record: dict[str, Any]
    plan: Plan
    dropped: tuple[str, ...]
    folded: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()


class Published(Protocol):
    """A family's `convert.py`.

    BACKBONE_TAG: where config.yaml names the backbone; None where a config.json has the numbers themselves.
    EMBEDDINGS: the published name of its table.
    CODEC: how the names of the codec's copy in the file begin; empty where there is none.
    GENERATION: fields of `speech_sampling` by keys of generation_config.json; empty if releases have no such file.
    """

    BACKBONE_TAG: str | None
    EMBEDDINGS: str
    CODEC: str
    GENERATION: Mapping[str, tuple[str, ...]]

    def trained_dtype(self, config: Mapping[str, Any]) -> str | None:
        """What the model computed in while it was trained, as far as config.yaml says."""
        ...

    def notes(self, config: Mapping[str, Any], embeddings: Tensor, family: str) -> list[str]:
        """What an operator may want to know of the files."""
        ...

    def convert(self, release: Release, contents: Contents) -> Converted:
        """The checkpoint; CheckpointError says what does not fit."""
        ...


def published(release: Release) -> Published:
    """How the family of a release is published."""
    module = module_of(release.family_name, "convert")
    assert module is not None, release.family
    return cast(Published, module)
