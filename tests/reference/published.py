"""Slow reference that reads a release's own file with ESPnet's names, independently of the converter."""

import json
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lab.releases.random_espnet import Published
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.reference import ReferenceModel
from stretto.testing.suite import ExpectedReply

# Hugging Face's names for ESPnet's, if they differ.
OPUSLM = {"model.embed_tokens.weight": "corelm.emb.weight", "lm_head.weight": "corelm.lm_head.weight"}
TOWER = "multimodal_io_dict.continuous_audio.model.audio_tower."
HEARING = (TOWER, "adaptor.continuous_audio.")


def heard(name: str) -> str:
    """Return the reference's name for a tensor of the audio encoder or its adaptor."""
    return name.replace(TOWER, "audio_tower.").replace("adaptor.continuous_audio.", "adaptor.")


class PublishedReference(ReferenceModel):
    """Replies for a release.

    Bagpiper does not add row 0 of its stream embeddings; OpusLM adds nine of its twelve rows.
    """

    def __init__(self, published: Published, family: Family, max_model_len: int):
        self.family, self.max_model_len = family, max_model_len
        stored: dict[str, Tensor] = torch.load(published.model, weights_only=True)
        tensors = stored.get("module", stored)
        config = json.loads((published.backbone / "config.json").read_text())
        config |= {"vocab_size": family.layout.vocab_size, "tie_word_embeddings": False}
        self.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).float().eval()
        if family.name == "bagpiper":
            names = {name: name for name in self.model.state_dict()}
            self.bias = tensors["stream_emb.weight"].clone()
            self.bias[0] = 0
            self.hearing = {heard(name): tensor for name, tensor in tensors.items() if name.startswith(HEARING)}
            self.audio_config = json.loads((published.audio / "config.json").read_text())
        else:
            names = {name: OPUSLM.get(name, f"corelm.decoders.{name}") for name in self.model.state_dict()}
            self.bias = tensors["corelm.head_emb.weight"][:9]
        self.model.load_state_dict({name: tensors[stored_name] for name, stored_name in names.items()})

    def expected(self, prompts: Mapping[str, Prompt]) -> dict[str, ExpectedReply]:
        """Return the expected replies of a family's suite, by request id."""
        return {name: ExpectedReply(prompt, partial(self._check, prompt)) for name, prompt in prompts.items()}

    def _check(self, prompt: Prompt, rows: np.ndarray) -> None:
        expected, lead = self.reply(prompt, guess=rows.tolist())
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        assert rows.tolist() == expected
