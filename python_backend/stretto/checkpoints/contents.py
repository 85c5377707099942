"""What the files of one release hold, tensors left where they are, and what they tell an operator."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stretto.checkpoints.backbone import read_backbone
from stretto.checkpoints.release import Release, Tokenizer, entry, read_tensors, read_yaml
from stretto.errors import CheckpointError

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Contents:
    """config: config.yaml. backbone: the numbers of the backbone that it names. dtype: what tensors are written in."""

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    backbone: dict[str, Any]
    dtype: str

    @classmethod
    def of(cls, release: Release) -> "Contents":
        """Reads everything but the tensors' contents; CheckpointError where a file is not what it should be."""
        config, tensors = read_yaml(release.config), read_tensors(release.model)
        tokenizer = Tokenizer.at(release.tokenizer)
        tag = entry(config, "model.model_hf_tag" if release.is_bagpiper else "transformer_conf.hf_model_tag")
        backbone = read_backbone(tag, release.backbone, release.tokenizer)
        dtype = release.dtype or trained_dtype(config, tensors, release.is_bagpiper)
        return cls(config, tensors, tokenizer, backbone, dtype)

    def notes(self, release: Release) -> list[str]:
        """What was found that an operator may want to know."""
        table = self.tensors["model.embed_tokens.weight" if release.is_bagpiper else "corelm.emb.weight"]
        stored = str(table.dtype).removeprefix("torch.")
        notes = [f"stored in {stored}, written in {self.dtype}"] if stored != self.dtype else []
        if release.is_bagpiper:
            return notes
        kind = "zero" if not table[0].any() else "not zero: a row of text carries it eight times"
        return [*notes, f"the pad's embedding is {kind}", *self._doubts(release.family)]

    def _doubts(self, family: str) -> list[str]:
        """OpusLM and the dialogue model differ in nothing but how they were trained: the latter on preferences."""
        model = self.config.get("model")
        if (model == "dpo") == (family == "opuslm-dialogue"):
            return []
        return [f"config.yaml says `model: {model}`, which the release of {family} does not: another family?"]


def trained_dtype(config: Mapping[str, Any], tensors: Mapping[str, Tensor], is_bagpiper: bool) -> str:
    """What the model computed in while it was trained; the file of the dialogue model is stored in float32, but was
    trained in bfloat16."""
    if is_bagpiper:
        dtype = _found(config, "model.model_conf.dtype")
    else:
        dtype = "bfloat16" if _found(config, "ds_config_dict.bf16.enabled") else None
    dtype = dtype or str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise CheckpointError(f"trained in one of {', '.join(DTYPES)} is expected, got {dtype!r}; --dtype decides")
    return dtype


def _found(config: Mapping[str, Any], dotted: str) -> Any:
    """What lies under `a.b.c`; None where nothing does."""
    with suppress(CheckpointError):
        return entry(config, dotted)
    return None
