"""Small models with one key head, and with three heads in layers of odd sizes, and replies that they must give."""

import itertools
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2Model

from stretto.convert.command import main
from stretto.engine.reply_rules import SegmentRules
from stretto.family.base import Family
from stretto.family.plugin import config_at, family_at
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing.checkpoints import make_prompts
from stretto.testing.reference import ReferenceModel
from stretto.weights.loading import write_json
from tests.engine.harness import Engine

LENGTH = 160
NUM_PROMPTS = 4
HEAD_DIM = 32  # the smallest that vLLM's attention supports on a CPU


@dataclass(frozen=True)
class Shape:
    """Sizes of attention: number of query and key heads, and the width if heads have a size of their own."""

    num_heads: int
    num_kv_heads: int
    width: int

    @property
    def whole_width(self) -> int:
        """Width of layers whose heads divide it."""
        return HEAD_DIM * self.num_heads

    @property
    def heads(self) -> dict[str, int]:
        """Keys of a config.json with the numbers of heads."""
        return {"num_attention_heads": self.num_heads, "num_key_value_heads": self.num_kv_heads}

    def numbers(self, width: int = 0) -> dict[str, int]:
        """Return the keys of a config.json, with a width of its own or the given one."""
        return {"hidden_size": width or self.width, **self.heads, "head_dim": HEAD_DIM}


SHAPES = {"one key head": Shape(3, 1, 88), "three heads": Shape(3, 3, 72)}
Write = Callable[[pytest.MonkeyPatch, Path, Shape], Path]


def converted(command: list[str], folder: Path) -> Path:
    """Convert a release and return the checkpoint."""
    out = folder / "checkpoint"
    assert main([*command, "--out", str(out)]) == 0
    return out


def gpt2_reference(config: dict[str, Any], weights: dict[str, torch.Tensor], family: Family) -> ReferenceModel:
    """Return the slow reference over transformers' GPT-2."""
    model: Any = GPT2Model(GPT2Config.from_dict(config)).eval()
    named = {name: each for name, each in weights.items() if name.startswith("transformer.")}
    model.load_state_dict({name.removeprefix("transformer."): each for name, each in named.items()})
    model.embed_tokens = model.wte
    head = torch.nn.Linear(model.wte.embedding_dim, family.layout.vocab_size)
    rows = audio_ids(family)
    with torch.no_grad():
        head.weight[rows] = weights["audio_head.weight"]
        head.bias[rows] = weights.get("audio_head.bias", torch.zeros(len(rows)))
    reference = ReferenceModel.__new__(ReferenceModel)
    reference.family = family
    reference.max_model_len = LENGTH
    reference.model = SimpleNamespace(model=model, lm_head=head)
    reference.bias = None
    return reference


def audio_ids(family: Family) -> list[int]:
    """Return the ids of an audio head's rows: those of stream 0, of its ends, and of the other streams."""
    rules = SegmentRules(family, LENGTH)
    first, *others = (rules.audio_ids(stream) for stream in range(family.layout.num_output_streams))
    return [*first, *rules.drawn_ends_of_audio, *itertools.chain(*others)]


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    (path,) = checkpoint.glob("*.safetensors")
    return load_file(path)


def reference_of(checkpoint: Path, family: Family, folder: Path) -> ReferenceModel:
    """Return the slow reference for a checkpoint, with the rows of its audio head in the head of all ids."""
    config = config_at(checkpoint)
    weights = tensors_of(checkpoint)
    if config["model_type"] == "gpt2":
        return gpt2_reference(config, weights, family)
    if family.audio_head:
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).clone()
        head[audio_ids(family)] = weights.pop("audio_head.weight")
        weights["lm_head.weight"] = head
        config["tie_word_embeddings"] = False
    folder.mkdir()
    write_json(folder / "config.json", config)
    save_file(weights, folder / "model.safetensors")
    return ReferenceModel(folder, family, LENGTH)


def assert_replies_match(checkpoint: Path, prompts: Mapping[str, Prompt], reference: ReferenceModel) -> None:
    """Assert that replies to all prompts at once, and to two of them alone, are those of the reference."""
    with Engine(checkpoint, max_model_len=LENGTH) as engine:
        answers = engine.run(prompts)
        alone = {each: engine.run({each: prompts[each]})[each].rows for each in list(prompts)[1:3]}
    assert alone == {each: answers[each].rows for each in alone}
    for name, prompt in prompts.items():
        rows, lead = reference.reply(prompt, guess=answers[name].rows)
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        assert answers[name].rows == [row[: reference.family.layout.num_output_streams] for row in rows], name


def assert_replies_match_reference(checkpoint: Path, folder: Path) -> None:
    """Assert that a checkpoint's replies are those of the slow reference, whose weights are written to `folder`."""
    family = family_at(checkpoint)
    assert_replies_match(checkpoint, make_prompts(family, NUM_PROMPTS), reference_of(checkpoint, family, folder))


def repeat_key_heads(checkpoint: Path, folder: Path) -> Path:
    """Write a copy of a checkpoint with one key head in which each query head has a copy of that head."""
    shutil.copytree(checkpoint, folder)
    config = config_at(folder)
    number = config["num_attention_heads"]
    assert config["num_key_value_heads"] == 1
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    count = 0
    for name, each in weights.items():
        if re.search(r"\b[kv]_proj\.", name):
            weights[name] = each.repeat(number, *[1] * (each.dim() - 1))
            count += 1
        elif name.endswith("voice_rows"):
            weights[name] = each.repeat(1, 1, 1, number)
        elif name.endswith("voices"):
            weights[name] = each.repeat(1, 1, 1, number, 1)
    assert count
    save_file(weights, path)
    write_json(folder / "config.json", config | {"num_key_value_heads": number})
    return folder


def assert_copies_give_the_same_replies(checkpoint: Path, folder: Path) -> None:
    """Assert that a model with one key head gives the replies of one in which each query head has a copy of it.

    Such a family's replies with several key heads are compared with the authors' code elsewhere.
    """
    family = family_at(checkpoint)
    prompts = make_prompts(family, NUM_PROMPTS)
    replies = []
    for model in (checkpoint, repeat_key_heads(checkpoint, folder)):
        with Engine(model, max_model_len=LENGTH) as engine:
            answers = engine.run(prompts)
            assert engine.run({"r1": prompts["r1"]})["r1"].rows == answers["r1"].rows
        replies.append({each: np.array(answer.rows[:3]) for each, answer in answers.items()})
    for each, rows in replies[0].items():
        others = replies[1][each]
        assert np.array_equal(rows[:, 0], others[:, 0])
        if family.layout.latents is None:
            assert np.array_equal(rows, others)
        else:
            words = latents_of(rows[:, 1:].astype(np.int32))
            np.testing.assert_allclose(words, latents_of(others[:, 1:].astype(np.int32)), rtol=0, atol=1e-3)
