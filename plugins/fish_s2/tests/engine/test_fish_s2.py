"""Fish Audio S2 in the engine: rows equal those of a slow reference that reads the published layout."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.fish_s2.tests.fish_s2_release import FishReference, absolute, convert_release, prompt_rows
from stretto.cpu_backend import int8
from stretto.cpu_backend.int8 import has_int8
from stretto.family.plugin import family_at
from stretto.records.prompt import Prompt
from stretto.testing import assert_family_conforms
from stretto_fish_s2 import PLUGIN
from tests.engine.harness import Engine
from tests.engine.test_no_sync import as_on_a_gpu
from tests.small_vocabularies import SMALL_FISH_S2
from tests.tiers import by_night

pytestmark = pytest.mark.engine
ROOMY: dict[str, Any] = {"max_model_len": 160}
# Prompts in chunks, and less memory than four replies need.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "num_gpu_blocks_override": 8}
MAX_FRAMES = 40
# Temperature, top-k, top-p and seed.
DRAWN = ((1.0, 30, 0.9, 1), (1.4, 6, 0.95, 2), (0.7, 30, 0.8, 3), (0.0, 30, 0.9, 4))


def requests(checkpoint: Path, kind: str) -> tuple[dict[str, Prompt], dict[str, list[list[int]]], int]:
    """Return prompts and the reference's rows by name, and how many semantic tokens it sampled again."""
    family = family_at(checkpoint)
    reference, prompts, expected, num_again = FishReference(kind, family), dict[str, Prompt](), {}, 0
    for number in range(3):
        for temperature, top_k, top_p, seed in DRAWN:
            usual, rows = family.tasks[0].sampling, prompt_rows(kind, number)
            limits = replace(usual.audio, temperature=temperature, top_k=top_k, top_p=top_p, max_rows=MAX_FRAMES)
            name = f"{kind}.{number}.{seed}"
            prompts[name] = Prompt("tts", absolute(rows, family), replace(usual, audio=limits, seed=seed))
            reply = reference.reply(rows, prompts[name].sampling)
            expected[name], num_again = reply.rows, num_again + reply.num_again
    return prompts, expected, num_again


@pytest.mark.parametrize(
    ("kind", "is_async"), [("small", True), ("deep", False), *by_night(("small", False), ("deep", True))]
)
def test_rows_match_the_published_layout(tmp_path: Path, kind: str, is_async: bool) -> None:
    """Greedy and sampled replies, some of which end and some of which are cut; alone, batched and preempted."""
    checkpoint = convert_release(tmp_path, kind)
    prompts, expected, num_again = requests(checkpoint, kind)
    tight = TIGHT if kind == "deep" else {}
    with Engine(checkpoint, async_scheduling=is_async, **ROOMY, **tight) as engine:
        for name, prompt in list(prompts.items())[:2]:
            assert engine.run({name: prompt})[name].rows == expected[name], f"{name} alone"
        answers = engine.run(prompts, {name: at for at, name in enumerate(prompts)})
        assert {name: answer.rows for name, answer in answers.items()} == expected
        num_preemptions = sum(each.trailer.num_preemptions for each in answers.values() if each.trailer)
        assert (num_preemptions > 0) == (kind == "deep")
        assert engine.is_clean()
    assert {len(rows) <= MAX_FRAMES for rows in expected.values()} == {True, False}
    assert num_again > 0


@pytest.mark.parametrize("uses_kernels", [False, *by_night(True)])
def test_rows_sampled_as_on_a_gpu_are_the_same(
    uses_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch, and with the kernels in Triton's interpreter."""
    checkpoint = convert_release(tmp_path)
    prompts, expected, _ = requests(checkpoint, "small")
    as_on_a_gpu(monkeypatch)
    with Engine(checkpoint, **ROOMY, additional_config={"step_kernels": uses_kernels}) as engine:
        assert {name: answer.rows for name, answer in engine.run(prompts).items()} == expected
        assert engine.is_clean()


def test_family_conforms(tmp_path: Path) -> None:
    assert_family_conforms(PLUGIN, tmp_path, SMALL_FISH_S2.to_record(), num_prompts=16)


@pytest.mark.skipif(not has_int8(torch.float32), reason="the processor has no VNNI instructions")
def test_int8_layers_speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies are the same alone and in a batch, and others than without int8."""
    monkeypatch.setattr(int8, "MIN_WIDTH", 16)  # of small models
    checkpoint = convert_release(tmp_path)
    family, prompts = family_at(checkpoint), dict[str, Prompt]()
    for number in range(3):
        limits = replace(family.tasks[0].sampling.audio, min_rows=9, max_rows=20)
        sampling = replace(family.tasks[0].sampling, audio=limits, seed=number)
        prompts[str(number)] = Prompt("tts", absolute(prompt_rows("small", number), family), sampling)
    with Engine(checkpoint, int8=True, **ROOMY) as engine:
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        assert {name: answer.rows for name, answer in engine.run(prompts).items()} == alone
    with Engine(checkpoint, **ROOMY) as engine:
        assert {name: answer.rows for name, answer in engine.run(prompts).items()} != alone
