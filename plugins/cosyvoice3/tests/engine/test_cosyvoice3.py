"""CosyVoice 3 in the engine: codes equal those of the authors' loop, unbatched, batched and preempted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from plugins.cosyvoice3.lab.random_cosyvoice3 import KNOWN, SEEDS, convert
from plugins.cosyvoice3.tests.cosyvoice3_release import LIVE, REPLIES, codes_of, prompt_of
from stretto.engine.frame_codes import FrameCodes
from stretto.family.base import Family
from stretto.records.sampling import CodeSampling
from stretto.testing import assert_family_conforms
from stretto.testing.checkpoints import make_prompt, write_checkpoint
from stretto_cosyvoice3 import PLUGIN
from stretto_cosyvoice3.family import CosyVoice3Vocabulary, build
from stretto_cosyvoice3.mechanism.reference import Codes
from tests.engine.harness import Answer, Engine
from tests.engine.test_open_texts import extend
from tests.tiers import by_night

pytestmark = pytest.mark.engine
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "num_gpu_blocks_override": 9}


def test_fixture_is_numerically_unambiguous() -> None:
    """Every id leads clearly. Replies end by themselves and at their limit, and some ids are sampled again."""
    assert min(reply["lead"] for reply in REPLIES) > 1e-4
    assert {reply["release"] for reply in REPLIES} == {*SEEDS}
    is_full = {len(reply["codes"]) == 20 * len(reply["ids"]) for reply in REPLIES}
    assert is_full == {True, False}
    assert sum(reply["again"] for reply in REPLIES) > 2
    assert all(len(reply["codes"]) >= 2 * len(reply["ids"]) for reply in REPLIES)


@pytest.mark.parametrize("seed", [SEEDS[0], *by_night(*SEEDS[1:])])
def test_codes_match_the_published_model(tmp_path: Path, seed: int) -> None:
    checkpoint = convert(tmp_path, seed)
    mine = {f"r{at}": reply for at, reply in enumerate(REPLIES) if reply["release"] == seed}
    prompts = {name: prompt_of(checkpoint, reply) for name, reply in mine.items()}
    with Engine(checkpoint, max_model_len=128, **TIGHT) as engine:
        alone = {name: engine.run({name: prompt})[name] for name, prompt in list(prompts.items())[:1]}
        answers = engine.run(prompts)
        assert engine.is_clean()
    for name, reply in mine.items():
        assert codes_of(answers[name].rows) == reply["codes"], name
    for name, answer in alone.items():
        assert answer.rows == answers[name].rows
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0


@pytest.mark.nightly  # by day, test_open_texts.py
@pytest.mark.parametrize("seed", [SEEDS[0], *by_night(*SEEDS[1:])])
def test_streamed_text_codes_match_the_published_loop(tmp_path: Path, seed: int) -> None:
    """The engine equals the authors' corrected loop: unbatched, batched, preempted, and with words one at a time."""
    checkpoint = convert(tmp_path, seed)
    mine = {f"r{at}": reply for at, reply in enumerate(LIVE) if reply["release"] == seed}
    prompts = {name: prompt_of(checkpoint, reply) for name, reply in mine.items()}
    with Engine(checkpoint, max_model_len=192, **(TIGHT | {"num_gpu_blocks_override": 11})) as engine:
        answers = engine.run(prompts)
        assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0
        for name, prompt in prompts.items():
            words = prompt.track[len(prompt.track) - len(mine[name]["ids"]) - 1 :]
            begun, answer = replace(prompt, track=prompt.track[: -len(words)], is_open=True), Answer()
            engine.add(name, begun)
            for place, word in enumerate(words):
                for _ in range(place % 4):
                    engine._step({name: answer})
                extend(engine, name, [word], is_last=place == len(words) - 1)
            while engine.is_busy():
                engine._step({name: answer})
            assert answer.rows == answers[name].rows, name
        assert engine.is_clean()
    for name, reply in mine.items():
        is_cut, codes = reply["rows"] + 1 >= reply["limit"], codes_of(answers[name].rows)
        assert (codes[: len(reply["codes"])] if is_cut else codes) == reply["codes"], name


def test_live_text_fixture_covers_every_border() -> None:
    """Texts end within the recording's codes, at a border, and after several groups; some replies end by themselves."""
    assert min(reply["lead"] for reply in LIVE) > 1e-3
    assert {len(reply["codes"]) > reply["border"] > 15 for reply in LIVE} == {True, False}
    assert {reply["border"] for reply in LIVE} >= {0, 15, 30}
    assert {reply["rows"] + 1 < reply["limit"] for reply in LIVE} == {True, False}


def write_with_head(folder: Path, family: Family, name: str, **shape: Any) -> Path:
    """Write a random checkpoint whose head for codes and ends is part of the head for all ids."""
    path = write_checkpoint(folder, family, name, **shape) / "model.safetensors"
    weights = load_file(path)
    weights["audio_head.weight"] = weights["lm_head.weight"][family.layout.audio[0].start :].clone()
    save_file(weights, path)
    return folder


@pytest.mark.nightly
def test_family_conforms(tmp_path: Path) -> None:
    """Random prompts include ids that are sampled again without the repeated one."""
    small = CosyVoice3Vocabulary(64, num_codes=150, num_speech_ids=156, end_of_prompt=3, quiet=(1,), max_model_len=256)
    assert_family_conforms(PLUGIN, tmp_path, small.to_record(), write_with_head, num_prompts=14, hidden=64, layers=2)


def test_reference_notices_near_ties_without_randomness() -> None:
    """At temperature 0, the runner-up is among the candidates of the reference, which compares it with the best one."""
    logits, limits = [0.0, 1.0 - 1e-9, 1.0], CodeSampling(0.0, top_k=1, top_p=0.1)
    family = build(KNOWN.to_record())
    kept = Codes(family.drawing, make_prompt(family, 0)).kept(logits, [2, 1, 0], limits, logits)
    assert kept == dict(enumerate(logits))


def test_long_runs_of_quiet_codes_are_shortened() -> None:
    """From the sixth consecutive quiet code, none is decoded, for any chunks."""
    family = build(KNOWN.to_record())
    codes = [7, *[1, 28, 2] * 3, 9, *[55] * 5, 3]
    for size in (1, 4, len(codes)):
        frames, kept = FrameCodes(family, family.layout.codebook_streams), []
        for start in range(0, len(codes), size):
            part = codes[start : start + size]
            frames.push(np.array(part)[:, None] + KNOWN.num_text_ids)
            popped = frames.pop_frames(len(part))
            kept += [] if popped is None else popped[0].tolist()
        assert kept == [7, 1, 28, 2, 1, 28, 9, *[55] * 5, 3]
