"""MOSS-TTS in the engine: rows equal those of the authors' loop, alone, batched and preempted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from plugins.moss.lab.moss_tts_replies import REPLIES
from plugins.moss.lab.random_moss import IDS
from plugins.moss.tests.moss_release import convert_release, stored
from stretto.engine.reply_rules import SegmentRules
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling
from stretto.testing import assert_family_conforms
from stretto.testing.checkpoints import write_checkpoint
from stretto_moss.moss_tts import PLUGIN
from tests.engine.harness import Engine
from tests.small_vocabularies import SMALL_MOSS_TTS
from tests.tiers import by_night

pytestmark = pytest.mark.engine
ROOMY: dict[str, Any] = {"max_model_len": 320}
# Prompts in chunks, and less memory than three replies need.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 96, "max_num_seqs": 4, "num_gpu_blocks_override": 19}


def absolute(rows: np.ndarray, family: Family) -> np.ndarray:
    """Return the authors' rows [T, 1 + K] with the ids of the checkpoint, int32."""
    first_codes = np.array([0, *(ids.start for ids in family.layout.audio[1:])])
    return (rows + first_codes).astype(np.int32)


def prompt_of(family: Family, kind: str, number: int, seed: int, mode: str, max_rows: int) -> Prompt:
    """Return one of the authors' prompts, with the row that begins audio."""
    begin = np.array([[IDS["audio_start_token_id"], *family.layout.initial[1:]]], np.int32)
    rows = np.concatenate([absolute(stored()[f"{kind}.prompt{number}"], family), begin])
    sampling = replace(family.tasks[0].sampling, seed=seed)
    audio, codes = replace(sampling.audio, max_rows=max_rows), sampling.depth
    if mode == "greedy":
        audio, codes = replace(audio, temperature=0.0), CodeSampling(0.0)
    return Prompt("tts", rows, replace(sampling, audio=audio, depth=codes))


def expected_of(family: Family, rows: np.ndarray) -> list[list[int]]:
    """Return the rows of a reply, by the authors' rows; a reply that did not end there is cut at a length limit."""
    end = np.flatnonzero(rows[:, 0] == family.end_of_audio)
    length = int(end[0]) if len(end) else len(rows)
    last = [family.end_of_audio, *[family.layout.pad_id] * family.num_codebooks]
    return [*absolute(rows[:length], family).tolist(), last]


def requests(family: Family, kind: str) -> tuple[dict[str, Prompt], dict[str, list[list[int]]]]:
    """Return the prompts of the fixture and the expected rows, by name."""
    prompts, expected = dict[str, Prompt](), dict[str, list[list[int]]]()
    for number in range(2):
        for seed, mode in REPLIES:
            name = f"{kind}.{number}.{seed}.{mode}"
            expected[name] = expected_of(family, stored()[name])
            prompts[name] = prompt_of(family, kind, number, seed, mode, len(stored()[name]))
    return prompts, expected


@pytest.mark.parametrize(
    ("kind", "is_async"), [("small", True), ("deep", False), *by_night(("small", False), ("deep", True))]
)
def test_rows_match_the_authors_loop(tmp_path: Path, kind: str, is_async: bool) -> None:
    """Greedy and sampled replies, some of which end and some of which are cut; the longer ones also preempted."""
    checkpoint = convert_release(tmp_path, kind)
    family = family_at(checkpoint)
    prompts, expected = requests(family, kind)
    tight = TIGHT if kind == "deep" else {}
    with Engine(checkpoint, async_scheduling=is_async, **ROOMY, **tight) as engine:
        for name, prompt in list(prompts.items())[:2]:
            assert engine.run({name: prompt})[name].rows == expected[name], f"{name} alone"
        answers = engine.run(prompts, {name: at for at, name in enumerate(prompts)})
        assert {name: answer.rows for name, answer in answers.items()} == expected
        num_preemptions = sum(each.trailer.num_preemptions for each in answers.values() if each.trailer)
        assert (num_preemptions > 0) == (kind == "deep")
        assert engine.is_clean()


def write_with_head(folder: Path, family: Family, name: str, **shape: Any) -> Path:
    """Write a random checkpoint whose head for slots and codes is part of the head for all ids."""
    path = write_checkpoint(folder, family, name, **shape) / "model.safetensors"
    weights, rules = load_file(path), SegmentRules(family, 1)
    ids = [token for stream in range(len(family.layout.audio)) for token in rules.audio_ids(stream)]
    weights["audio_head.weight"] = weights["lm_head.weight"][ids]
    save_file(weights, path)
    return folder


@pytest.mark.nightly
def test_family_conforms(tmp_path: Path) -> None:
    """Replies have at least 12 rows, so that some are preempted."""
    small = replace(SMALL_MOSS_TTS, num_codebooks=12)
    assert_family_conforms(PLUGIN, tmp_path, small.to_record(), write_with_head, num_prompts=20)
