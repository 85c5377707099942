"""Pocket TTS in the engine: latents equal the authors' within a nudge's effect, and replies end at the same frame."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.pocket.tests.pocket_release import KINDS, cloning, convert_release, reply
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing import assert_family_conforms
from stretto_pocket.pocket_tts import PLUGIN
from tests.engine.forking import forked_processes
from tests.engine.harness import Engine
from tests.engine.nudges import assert_latents_near
from tests.engine.test_tensor_parallel import RankCheck
from tests.tiers import by_night

pytestmark = pytest.mark.engine
TIGHT = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 5, "max_model_len": 128}


def seeded(prompt: Prompt, seed: int) -> Prompt:
    return replace(prompt, sampling=replace(prompt.sampling, seed=seed))


def prompt_of(checkpoint: Path, text: str, seed: int) -> Prompt:
    return seeded(Preprocessor(checkpoint).prepare(RawRequest(text=text, options='{"voice": "alba"}')), seed)


def growing(checkpoint: Path) -> Prompt:
    """Return a prompt of almost two KV blocks, whose reply needs a third block, which other requests have by then."""
    text = "one more"
    while len((prompt := prompt_of(checkpoint, text, 1)).rows) < 54:
        text += " so"
    assert len(prompt.rows) < 60
    return replace(prompt, sampling=replace(prompt.sampling, audio=replace(prompt.sampling.audio, min_rows=30)))


@pytest.mark.parametrize(
    ("kind", "is_async"), [("english", False), *by_night(("english", True), *((kind, True) for kind in KINDS[1:]))]
)
def test_pocket_tts_latents_and_reply_ends_match_the_authors(tmp_path: Path, kind: str, is_async: bool) -> None:
    """Voices are given by name or as a recording. Replies stay bit-identical with other requests and preemption."""
    checkpoint, expected = convert_release(tmp_path, kind), reply(kind)
    family = family_at(checkpoint)
    prompts = {"own": prompt_of(checkpoint, expected.text, expected.seed)}
    assert family.voices[0] == "alba"
    assert prompts["own"].rows[21:-1, 0].tolist() == expected.tokens
    cloned = Preprocessor(checkpoint).prepare(cloning(expected.text, options='{"audio": {"min_rows": 16}}'))
    prompts["cloned"] = seeded(cloned, expected.seed)
    prompts |= {
        f"r{index}": prompt_of(checkpoint, text, index) for index, text in enumerate(("one more", "and a third"))
    }
    with Engine(checkpoint, **TIGHT, async_scheduling=is_async) as engine:
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        together = engine.run(prompts, {"r1": 3})
        assert {name: answer.rows for name, answer in together.items()} == alone
        for name in ("own", "cloned"):
            answer = engine.run({"first": growing(checkpoint), name: prompts[name]}, {name: 2})[name]
            assert answer.rows == alone[name]
            assert answer.trailer is not None
            assert answer.trailer.num_preemptions > 0, name
        assert engine.is_clean()
    rows = np.array(alone["own"], np.int64)
    assert rows[-1, 0] == family.end_of_reply
    last = family.layout.audio[0][1]
    assert np.flatnonzero(rows[:, 0] == last).tolist() == [expected.ended]
    assert len(rows) - 1 == len(expected.latents) == expected.ended + expected.tail
    assert_near(rows[:-1], expected.latents, expected.nudged)
    assert_near(np.array(alone["cloned"], np.int64)[: len(expected.cloned)], expected.cloned, expected.cloned_nudged)


def assert_near(rows: np.ndarray, latents: np.ndarray, nudged: np.ndarray) -> None:
    """Assert that latents in rows [T, 1 + D] match latents [T, D] within `nudged` [T], the effect of nudges."""
    assert_latents_near(latents_of(rows[:, 1:].astype(np.int32)), latents, nudged)


@pytest.mark.nightly
@pytest.mark.parametrize("is_async", [True, *by_night(False)], ids=["async", "sync"])
def test_two_ranks_match_the_authors_latents(tmp_path: Path, is_async: bool) -> None:
    """Both ranks have the same rows, and other requests and preemption change no bits.

    Ranks add up partial sums, so the bits are not those of one rank.
    """
    checkpoint, expected, check = convert_release(tmp_path, "english"), reply("english"), RankCheck()
    texts = {"own": expected.text, "r0": "one more", "r1": "and a third"}
    prompts = {name: prompt_of(checkpoint, text, expected.seed) for name, text in texts.items()}
    with forked_processes():
        engine = Engine(checkpoint, **TIGHT, tensor_parallel_size=2, async_scheduling=is_async)
    with engine:
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        together = engine.run(prompts, {"r1": 3}, after_step=check)
        assert {name: answer.rows for name, answer in together.items()} == alone
        assert any(answer.trailer.num_preemptions for answer in together.values() if answer.trailer)
        assert engine.free_blocks() == engine.num_free_blocks
    assert check.num_checks > 3
    rows = np.array(alone["own"], np.int64)
    assert len(rows) - 1 == expected.ended + expected.tail
    assert_near(rows[:-1], expected.latents, expected.nudged)


@pytest.mark.nightly
def test_family_conforms(tmp_path: Path) -> None:
    checkpoint = convert_release(tmp_path, "english_2m")

    def write(folder: Path, family: Family, name: str, vocabulary: Mapping[str, Any]) -> Path:
        return Path(shutil.copytree(checkpoint, folder))

    assert_family_conforms(PLUGIN, tmp_path / "conforming", config_at(checkpoint)[VOCABULARY], write)
