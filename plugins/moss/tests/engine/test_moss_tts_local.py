"""MOSS-TTS-Local in the engine: rows equal those of the authors' loop, alone, batched and preempted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from plugins.moss.lab.moss_tts_local_replies import MAX_ROWS, REPLIES
from plugins.moss.lab.random_moss_local import IDS
from plugins.moss.tests.moss_local_release import convert_release, stored
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling
from stretto.testing import assert_family_conforms
from stretto.testing.checkpoints import write_checkpoint
from stretto_moss.moss_tts_local import PLUGIN
from tests.engine.harness import Engine
from tests.small_vocabularies import SMALL_MOSS_TTS_LOCAL
from tests.tiers import by_night

pytestmark = pytest.mark.engine
ROOMY: dict[str, Any] = {"max_model_len": 320}
# Prompts in chunks, and less memory than three replies need.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 96, "max_num_seqs": 4, "num_gpu_blocks_override": 17}


def absolute(rows: np.ndarray, family: Family) -> np.ndarray:
    """Return the authors' rows [T, 1 + K] with the ids of the checkpoint, int32."""
    first_codes = np.array([ids.start for ids in family.layout.audio[1:]])
    codes = np.where(rows[:, 1:] == family.layout.codebook_size, family.layout.pad_id, rows[:, 1:] + first_codes)
    return np.concatenate([rows[:, :1], codes], 1).astype(np.int32)


def requests(family: Family, kind: str) -> tuple[dict[str, Prompt], dict[str, list[list[int]]]]:
    """Return the prompts of the fixture and the expected rows, by name."""
    prompts, expected = dict[str, Prompt](), dict[str, list[list[int]]]()
    last = [family.end_of_audio, *[family.layout.pad_id] * family.num_codebooks]
    for number in range(2):
        for seed, mode in REPLIES:
            name = f"{kind}.{number}.{seed}.{mode}"
            expected[name] = [*absolute(stored()[name], family).tolist(), last]
            sampling = replace(family.tasks[0].sampling, seed=seed)
            audio, codes = replace(sampling.audio, max_rows=MAX_ROWS), sampling.depth
            if mode == "greedy":
                audio, codes = replace(audio, temperature=0.0), CodeSampling(0.0)
            rows = absolute(stored()[f"{kind}.prompt{number}"], family)
            prompts[name] = Prompt("tts", rows, replace(sampling, audio=audio, depth=codes))
    return prompts, expected


@pytest.mark.parametrize(
    ("kind", "is_async"), [("small", True), ("deep", False), *by_night(("small", False), ("deep", True))]
)
def test_rows_match_the_authors_loop(tmp_path: Path, kind: str, is_async: bool) -> None:
    """Greedy and sampled replies, some of which end and some of which are cut; the longer ones also preempted."""
    checkpoint = convert_release(tmp_path, kind)
    prompts, expected = requests(family_at(checkpoint), kind)
    tight = TIGHT if kind == "deep" else {}
    with Engine(checkpoint, async_scheduling=is_async, **ROOMY, **tight) as engine:
        for name, prompt in list(prompts.items())[:2]:
            assert engine.run({name: prompt})[name].rows == expected[name], f"{name} alone"
        answers = engine.run(prompts, {name: at for at, name in enumerate(prompts)})
        assert {name: answer.rows for name, answer in answers.items()} == expected
        num_preemptions = sum(each.trailer.num_preemptions for each in answers.values() if each.trailer)
        assert (num_preemptions > 0) == (kind == "deep")
        assert engine.is_clean()
    assert {len(rows) <= MAX_ROWS for rows in expected.values()} == {True, False}
    assert IDS["audio_end_token_id"] == family_at(checkpoint).end_of_audio


def write_with_long_replies(folder: Path, family: Family, name: str, **shape: Any) -> Path:
    """Write a random checkpoint in which the end of audio is less likely than a slot."""
    path = write_checkpoint(folder, family, name, **shape) / "model.safetensors"
    weights = load_file(path)
    weights["depth.first_head"][0] += 8 * weights["depth.norm.bias"]
    save_file(weights, path)
    return folder


def test_family_conforms(tmp_path: Path) -> None:
    assert_family_conforms(
        PLUGIN, tmp_path, SMALL_MOSS_TTS_LOCAL.to_record(), write_with_long_replies, num_prompts=20, seed=1
    )
