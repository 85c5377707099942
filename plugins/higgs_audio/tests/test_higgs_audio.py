"""Higgs Audio v2 equals transformers: conversion, and rows of replies, however they end."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.higgs_audio.lab.random_higgs_audio import make_model, write_release
from plugins.higgs_audio.tests.published_higgs_audio import NUM_CODEBOOKS, HiggsAudioReference, make_prompt, said
from stretto.family.base import Family
from stretto.testing.releases import SmallRelease, edited
from stretto.testing.suite import ExpectedReply, FamilyCase, assert_same_checkpoints
from stretto_higgs_audio.higgs_audio import PLUGIN
from tests.family_suite import FamilySuite

# 4 of 6 replies at once, prompts in chunks, and room for hardly two of them.
TIGHT: dict[str, Any] = {
    "max_model_len": 128,
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 8,
}


def write(folder: Path, size: str) -> list[str]:
    return write_release(folder / "release", make_model(NUM_CODEBOOKS, num_codes=16, seed=7)).command


def reference_of(family: Family) -> HiggsAudioReference:
    return HiggsAudioReference(make_model(NUM_CODEBOOKS, num_codes=16, seed=7), family)


def replies(release: SmallRelease) -> Mapping[str, ExpectedReply]:
    """Greedy, guided and sampled ones, from the plain rules."""
    family = release.family
    reference = reference_of(family)
    prompts = {
        "greedy": make_prompt(family, 0),
        "heard": make_prompt(family, 1),
        "long": make_prompt(family, 2, min_rows=30, max_rows=40),
        "guided": make_prompt(family, 3, 2.0),
        "sampled": make_prompt(family, 4, temperature=1.0, top_k=9, top_p=0.95, min_rows=30, max_rows=40),
        "both": make_prompt(family, 5, 1.5, temperature=0.8, top_k=0, min_rows=20, max_rows=30),
    }
    expected = dict[str, ExpectedReply]()
    for name, prompt in prompts.items():
        rows, lead = reference.naive(prompt)
        assert lead > 1e-4, "the reference itself was nearly undecided: choose another seed"
        expected[name] = ExpectedReply(prompt, said(family, rows))
    return expected


class TestHiggsAudio(FamilySuite):
    case = FamilyCase(
        PLUGIN,
        write,
        refused_configs=[
            ({"model_type": "higgs_audio"}, "model_type: expected 'higgs_audio_v2'"),
            ({"attention_bias": True}, "attention_bias: expected False, got True"),
            ({"rms_norm_eps": "small"}, "invalid parameters for higgs_audio_v2"),
            ({"audio_stream_eos_id": 16}, "the last two ids"),
            ({"eos_token_id": [5, 6]}, "expected integers as eos_token_id"),
            ({"intermediate_size": 32}, "tensors do not match: wrong shape"),
            ({"num_codebooks": 5}, "embed_audio_tokens.weight [72, 64] instead of [90"),
        ],
        refused_edits=[
            (
                "release/model.safetensors",
                lambda tensors: tensors.update({"audio_codebook_embeddings.weight": torch.ones(1)}),
                "got Boson AI's format",
            ),
        ],
        needed_tokens=["<|end_header_id|>"],
        has_usual_requests=False,  # without a codec
        replies=replies,
        engine={"max_model_len": 128},
        tight=TIGHT,
    )

    def test_training_only_tensors_are_omitted(self, release: SmallRelease, copied: SmallRelease) -> None:
        with edited(copied.folder / self.case.weights) as tensors:
            tensors["text_lm_head.weight"] = torch.ones(330, 64)
        assert_same_checkpoints(release, copied)

    def test_repetition_rules_of_a_release_are_its_defaults(self, copied: SmallRelease) -> None:
        with edited(copied.folder / "release/generation_config.json") as record:
            record.update(ras_win_len=9, ras_win_max_num_repeat=3)
        sampling = copied.family.task("tts").sampling
        assert (sampling.ras_window, sampling.ras_max_repeats) == (9, 3)

    @pytest.mark.engine
    def test_reference_rules_match_generate(self, release: SmallRelease) -> None:
        """Replies end three and four rows after the first end token, and at the limit, in `generate` and in the engine.

        If the generation config requests it, `generate` resamples repeats even under greedy decoding.
        """
        family = release.family
        reference = reference_of(family)
        end = np.array([end for _, end in family.layout.extra])
        tails = set[int | None]()
        num_changed = 0
        for index in range(12):
            prompt = make_prompt(family, index)
            rows = reference.generated(prompt)
            assert rows == reference.naive(prompt)[0]
            freely = replace(prompt, sampling=replace(prompt.sampling, ras_window=0))
            num_changed += rows != reference.generated(freely)
            ended = np.flatnonzero((np.array(rows) == end).any(1))
            tails.add(len(rows) - ended[0] if len(ended) and len(rows) < prompt.sampling.audio.max_rows else None)
        assert tails >= {None, NUM_CODEBOOKS - 1, NUM_CODEBOOKS}
        assert num_changed

    @pytest.mark.engine
    @pytest.mark.nightly
    def test_traced_layers_give_the_expected_rows(self, release: SmallRelease) -> None:
        """With the compiler that traces the layers on a GPU."""
        from vllm.v1.worker.gpu.cudagraph_utils import has_compiled_submodule

        traced = {"mode": 2, "backend": "eager", "cudagraph_mode": "NONE"}
        engine = self.start_engine(release.checkpoint, **TIGHT, enforce_eager=False, compilation_config=traced)
        expected = replies(release)
        answers = engine.run({name: reply.prompt for name, reply in expected.items()})
        assert has_compiled_submodule(engine.model_state.model)
        assert {name: answer.rows for name, answer in answers.items()} == {
            name: reply.rows for name, reply in expected.items()
        }
        engine.shutdown()
