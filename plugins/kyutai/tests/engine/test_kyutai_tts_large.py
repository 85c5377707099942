"""Kyutai TTS 1.6B in the engine: rows equal those of the authors' code, with voices and guidance as conditions."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.kyutai.lab.random_kyutai_tts import LARGE
from plugins.kyutai.tests.engine.test_kyutai_tts import check, speak_word_by_word, timed
from plugins.kyutai.tests.kyutai_tts_release import Reply, make_checkpoint, make_prompt, replies
from plugins.kyutai.tests.small_families import SMALL_TTS
from stretto.testing import assert_family_conforms
from stretto_kyutai.kyutai_tts import PLUGIN
from tests.engine.harness import Engine
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine
LIMITS: dict[str, Any] = {"max_model_len": 160, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("kyutai_tts"), "large")


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine(checkpoint, **LIMITS) as engine:
        yield engine


def prompts(checkpoint: Path, wanted: list[Reply]) -> dict[str, Any]:
    return {f"r{at}": make_prompt(checkpoint, reply) for at, reply in enumerate(wanted)}


def test_rows_and_word_times_match_published_code(engine: Engine, checkpoint: Path) -> None:
    wanted = replies("large")
    check(engine.run(prompts(checkpoint, wanted[:1]))["r0"], wanted[0], checkpoint, "alone")
    made = prompts(checkpoint, wanted)
    answers = engine.run(made, {"r1": 4, "r3": 20})
    for name, reply in zip(made, wanted, strict=True):
        check(answers[name], reply, checkpoint, f"{name} in a batch")
        assert timed(engine, made[name], answers[name]) == (reply.times, reply.num_frames)
    assert engine.is_clean()


def test_fixture_exceeds_the_window_and_covers_all_streams_and_speakers() -> None:
    wanted = replies("large")
    assert all(len(reply.rows) > 3 * LARGE["context"] for reply in wanted)
    assert {(len(reply.voices), reply.scale) for reply in wanted} == {(1, 1.0), (1, 2.0), (2, 3.5)}
    assert all({0, -1} < {*reply.second.tolist()} for reply in wanted)
    assert all(({1, 2} <= {*reply.rows[:, 0].tolist()}) == (len(reply.voices) == 2) for reply in wanted)


def test_voice_and_scale_change_a_reply(engine: Engine, checkpoint: Path) -> None:
    reply = replies("large")[1]
    rows = {
        name: engine.run({"r": make_prompt(checkpoint, other, max_rows=28)})["r"].rows
        for name, other in {
            "as asked": reply,
            "another scale": replace(reply, scale=3.0),
            "one voice": replace(reply, voices=reply.voices[:1]),
            "voices exchanged": replace(reply, voices=reply.voices[::-1]),
        }.items()
    }
    assert len({str(each) for each in rows.values()}) == 4


@pytest.mark.nightly
def test_preempted_replies_resume_mid_word(checkpoint: Path) -> None:
    limits = LIMITS | {"max_num_seqs": 4, "max_num_batched_tokens": 24}
    wanted = [*replies("large"), *replies("large")]
    with Engine(checkpoint, **limits, num_gpu_blocks_override=7) as engine:
        answers = engine.run(prompts(checkpoint, wanted), {"r1": 5, "r2": 9, "r3": 30})
    for answer, reply in zip(answers.values(), wanted, strict=True):
        check(answer, reply, checkpoint)
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0


@pytest.mark.nightly
@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
def test_incremental_words_give_the_same_reply(checkpoint: Path, is_async: bool) -> None:
    """Blocked replies are preempted in favour of others, and continue in any slot with their own condition."""
    wanted, limits = replies("large") * 2, LIMITS | {"max_num_seqs": 4, "max_num_batched_tokens": 32}
    with Engine(checkpoint, async_scheduling=is_async, **limits, num_gpu_blocks_override=7) as engine:
        answers = speak_word_by_word(engine, checkpoint, wanted, seed=3, slowest=40)
        assert engine.scheduler.stats.values.preemptions_total > 0
    for (name, answer), reply in zip(answers.items(), wanted, strict=True):
        check(answer, reply, checkpoint, name)
    assert sum(answer.trailer.held_us for answer in answers.values() if answer.trailer) > 0


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["reduced", "cut"])
def test_rows_of_other_releases_match_published_code(tmp_path: Path, name: str) -> None:
    """A text head of five ids and tables of low rank; and a reply of 7 of 12 codebooks."""
    checkpoint = make_checkpoint(tmp_path, name)
    with Engine(checkpoint, **LIMITS) as engine:
        for reply in replies(name):
            check(engine.run({"r": make_prompt(checkpoint, reply)})["r"], reply, checkpoint)


@pytest.mark.nightly
def test_the_family_conforms(tmp_path: Path) -> None:
    """Conditions of random vectors, and a second text stream, with delays of 3, 4 and 5 rows."""
    known = replace(SMALL_TTS, ahead=2, voice_shape=(4, 8), guidance_scales=(1.0, 2.0))
    assert_family_conforms(PLUGIN, tmp_path, known.to_record(), backbone="llama")
