"""MOSS-TTS-Realtime in the engine: rows equal those of the authors' loop, alone, batched, preempted, word by word."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.moss.lab.moss_tts_realtime_replies import MAX_FRAMES, REPLIES, TEMPERATURE_HERE, TEXTS
from plugins.moss.tests.moss_realtime_release import convert_release, stored
from stretto.engine.reply_rules import TextUpdate
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.records.prompt import Prompt
from stretto.testing import assert_family_conforms
from stretto_moss.moss_tts_realtime import PLUGIN
from stretto_moss.moss_tts_realtime.family import NUM_PROMPT_IDS, MossRealtimeVocabulary
from tests.engine.harness import Answer, Engine, update_request
from tests.small_vocabularies import SMALL_MOSS_TTS_REALTIME
from tests.tiers import by_night

pytestmark = pytest.mark.engine
ROOMY: dict[str, Any] = {"max_model_len": 512}
# Prompts in chunks, and less memory than three replies need.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 96, "max_num_seqs": 4, "num_gpu_blocks_override": 17}


def absolute(rows: np.ndarray, family: Family) -> np.ndarray:
    """Return the authors' rows [T, 1 + K] with the ids of the checkpoint and the text last, int32."""
    first_codes = np.array([ids.start for ids in family.layout.audio])
    return np.concatenate([rows[:, 1:] + first_codes, rows[:, :1]], 1).astype(np.int32)


def prompt_of(checkpoint: Path, head: np.ndarray, words: list[int], seed: int, mode: str) -> Prompt:
    """Return a prompt with the authors' rows before the text, and the ids of a text."""
    family, known = family_at(checkpoint), MossRealtimeVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    first = np.full((min(NUM_PROMPT_IDS, len(words)), head.shape[1]), known.codebook_size)
    first[:, 0], first[-1, 1] = words[:NUM_PROMPT_IDS], known.codebook_size + 1
    rows = absolute(np.concatenate([head, first]), family)
    sampling = replace(family.tasks[0].sampling, seed=seed)
    temperature = 0.0 if mode == "greedy" else TEMPERATURE_HERE
    audio = replace(sampling.audio, max_rows=MAX_FRAMES, temperature=temperature)
    track = (*words[NUM_PROMPT_IDS:], known.text_pad)
    return Prompt("tts", rows, replace(sampling, audio=audio), track=track)


def expected_of(family: Family, codes: np.ndarray) -> list[list[int]]:
    """Return the rows of a reply, by the authors' codes [T, K]; one that did not end there is cut at a length limit."""
    ends = np.flatnonzero(codes[:, 0] == family.layout.codebook_size + 2)
    frames = codes[: ends[0] if len(ends) else None] + np.array([ids.start for ids in family.layout.audio])
    return [*frames.tolist(), [family.end_of_audio, *[family.layout.pad_id] * (family.num_codebooks - 1)]]


def requests(checkpoint: Path, kind: str) -> tuple[dict[str, Prompt], dict[str, list[list[int]]]]:
    """Return the prompts of the fixture and the expected rows, by name."""
    prompts, expected = dict[str, Prompt](), dict[str, list[list[int]]]()
    for voice in range(2):
        for number in range(len(TEXTS)):
            for seed, mode in REPLIES:
                name = f"{kind}.{voice}.{number}.{seed}.{mode}"
                words = stored()[f"{kind}.words{number}"].tolist()
                expected[name] = expected_of(family_at(checkpoint), stored()[name])
                prompts[name] = prompt_of(checkpoint, stored()[f"{kind}.prompt{voice}"], words, seed, mode)
    return prompts, expected


@pytest.mark.parametrize(
    ("kind", "is_async"), [("small", True), ("deep", False), *by_night(("small", False), ("deep", True))]
)
def test_rows_match_the_authors_loop(tmp_path: Path, kind: str, is_async: bool) -> None:
    """Greedy and sampled replies, some of which end and some of which are cut; the longer ones also preempted."""
    checkpoint = convert_release(tmp_path, kind)
    prompts, expected = requests(checkpoint, kind)
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


@pytest.mark.parametrize("is_async", [True, *by_night(False)])
def test_text_word_by_word_gives_the_same_rows(tmp_path: Path, is_async: bool) -> None:
    """Words arrive at several paces. Neither reply ends before its text, as `MossRealtimeTemplate` requires."""
    checkpoint = convert_release(tmp_path)
    prompts = {name: prompt for name, prompt in requests(checkpoint, "small")[0].items() if len(prompt.track) > 1}
    for name, prompt in prompts.items():
        audio = replace(prompt.sampling.audio, min_rows=len(prompt.track), max_rows=2 * MAX_FRAMES)
        prompts[name] = replace(prompt, sampling=replace(prompt.sampling, audio=audio))
    with Engine(checkpoint, async_scheduling=is_async, **ROOMY) as engine:
        at_once = {name: answer.rows for name, answer in engine.run(prompts).items()}
        left, answers, step = {name: list(prompt.track) for name, prompt in prompts.items()}, defaultdict(Answer), 0
        for at, (name, prompt) in enumerate(prompts.items()):
            begun, left[name] = left[name][: at % 3], left[name][at % 3 :]
            sampling = replace(prompt.sampling, audio=replace(prompt.sampling.audio, min_rows=0))
            engine.add(name, replace(prompt, track=tuple(begun), is_open=True, sampling=sampling))
        while engine.is_busy() or any(left.values()):
            for at, name in enumerate(prompts):
                if left[name] and step % (1 + at % 4) == 0:
                    part, left[name] = left[name][: 1 + at % 2], left[name][1 + at % 2 :]
                    update = TextUpdate(name, np.array(part, np.int32), not left[name])
                    engine.core.add_request(update_request(update))
            engine._step(answers)
            step += 1
        assert any(each.trailer is not None and each.trailer.held_us > 0 for each in answers.values())
    assert len(prompts) == 18
    assert {name: answer.rows for name, answer in answers.items()} == at_once
    assert {len(rows) <= 2 * MAX_FRAMES for rows in at_once.values()} == {True, False}, "some end, some are cut"


def test_family_conforms(tmp_path: Path) -> None:
    """Replies to more codes than in other tests end late enough for some to be preempted."""
    small = replace(SMALL_MOSS_TTS_REALTIME, codebook_size=40)
    assert_family_conforms(PLUGIN, tmp_path, small.to_record(), num_prompts=16)
