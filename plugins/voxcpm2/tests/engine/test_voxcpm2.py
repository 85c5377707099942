"""VoxCPM2 in the engine: patches equal the authors' within a nudge's effect, and are bit-identical in every batch."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.voxcpm2.tests.voxcpm2_release import MODES, convert_release, reply, request
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing import assert_family_conforms
from stretto.testing.conformance import Answer
from stretto_voxcpm2 import PLUGIN
from tests.engine.forking import forked_processes
from tests.engine.harness import Engine
from tests.engine.nudges import assert_latents_near
from tests.tiers import by_night

pytestmark = pytest.mark.engine
# Prompts in chunks, and memory for little more than two replies: others are preempted.
TIGHT: dict[str, Any] = {
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 4,
    "max_model_len": 96,
}
VOCABULARY_OF_RELEASES = {"num_text_ids": 160, "num_latents": 4, "num_numbers": 8, "max_model_len": 256}


def replies(checkpoint: Path, prompts: dict[str, Prompt], **options: Any) -> dict[str, Answer]:
    """Return unbatched replies; assert that they are bit-identical batched, preempted and cached."""
    with Engine(checkpoint, max_model_len=128) as engine:
        alone = {name: engine.run({name: prompt})[name] for name, prompt in prompts.items()}
    with Engine(checkpoint, **TIGHT, **options) as engine:
        for arrivals in ({"both": 3}, {}):  # the second time, prompts may come from the prefix cache
            answers = engine.run(prompts, arrivals)
            assert {name: answer.rows for name, answer in answers.items()} == {
                name: answer.rows for name, answer in alone.items()
            }
            assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0
        assert engine.is_clean()
    return alone


@pytest.mark.parametrize(
    ("kind", "is_async"), [("plain", True), *by_night(("plain", False), ("scaled", False), ("scaled", True))]
)
def test_voxcpm2_patches_and_reply_ends_match_the_authors(tmp_path: Path, kind: str, is_async: bool) -> None:
    checkpoint = convert_release(tmp_path, kind)
    family, preprocessor = family_at(checkpoint), Preprocessor(checkpoint)
    prompts = {mode: preprocessor.prepare(request(mode)) for mode in MODES}
    frame, last = family.layout.audio[0]
    for mode, answer in replies(checkpoint, prompts, async_scheduling=is_async).items():
        expected, rows = reply(kind, mode), np.array(answer.rows, np.int64)
        number = len(expected.latents)
        ids = [frame] * (number - expected.has_ended) + [last] * expected.has_ended
        assert rows[:, 0].tolist() == [*ids, family.end_of_reply], mode
        assert_latents_near(latents_of(rows[:-1, 1:].astype(np.int32)), expected.latents, expected.nudged)


@pytest.mark.nightly
def test_two_ranks_are_close_to_the_authors(tmp_path: Path) -> None:
    """Sums over ranks differ in the last bits from those of a single rank, but are bit-identical in every batch."""
    checkpoint = convert_release(tmp_path)
    preprocessor = Preprocessor(checkpoint)
    prompts = {mode: preprocessor.prepare(request(mode)) for mode in MODES}
    with forked_processes():
        engine = Engine(checkpoint, max_model_len=128, tensor_parallel_size=2)
    with engine:
        together = engine.run(prompts)
        for mode, prompt in prompts.items():
            rows = engine.run({mode: prompt})[mode].rows
            assert together[mode].rows == rows
            expected = reply("plain", mode)
            latents = latents_of(np.array(rows[:-1], np.int32)[:, 1:])
            assert_latents_near(latents, expected.latents, expected.nudged)


@pytest.mark.nightly
def test_family_conforms(tmp_path: Path) -> None:
    def write(folder: Path, family: Family, name: str, vocabulary: Mapping[str, Any]) -> Path:
        shutil.copytree(convert_release(tmp_path), folder)
        assert vocabulary == config_at(folder)[VOCABULARY]
        return folder

    assert_family_conforms(PLUGIN, tmp_path / "conforming", VOCABULARY_OF_RELEASES, write)


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{}, {"async_scheduling": True}, {"enable_prefix_caching": False}], ids=str)
def test_published_width_latents_are_batch_invariant(tmp_path: Path, options: dict[str, Any]) -> None:
    """Numbers of steps and guidance scales differ by request."""
    checkpoint = convert_release(tmp_path, "wide")
    preprocessor = Preprocessor(checkpoint)
    prompts = {mode: preprocessor.prepare(request(mode)) for mode in MODES}
    for index, (steps, scale) in enumerate(((2, 1.0), (5, 3.0), (10, 1.0), (50, 0.0))):
        asked = f'{{"latents": {{"steps": {steps}}}, "guidance_scale": {scale}, "audio": {{"max_rows": 14}}}}'
        prompt = preprocessor.prepare(RawRequest(text="a b " * (1 + index), options=asked))
        prompts[f"{steps} steps"] = replace(prompt, sampling=replace(prompt.sampling, seed=index))
    alone = replies(checkpoint, prompts, **options)
    firsts = {tuple(answer.rows[0]) for answer in alone.values()}
    assert len(firsts) == len(prompts)
