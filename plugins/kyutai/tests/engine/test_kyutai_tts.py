"""Kyutai TTS in the engine: text and codes equal those of the authors' code, guided or not, whole or word by word."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.kyutai.lab.random_kyutai_tts import CONFIG
from plugins.kyutai.tests.kyutai_tts_release import Reply, make_checkpoint, make_prompt, packed, replies, rows_of
from stretto.engine.reply_rules import ReplyState, TextUpdate
from stretto.family.plugin import family_at
from stretto.records.prompt import Prompt
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript, pack_word, unpack_words
from stretto_kyutai.kyutai_tts.mechanism.track import WordTrack
from tests.engine.harness import Answer, Engine, update_request
from tests.tiers import ASYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
LIMITS: dict[str, Any] = {"max_model_len": 160, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("kyutai_tts"))


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine(checkpoint, **LIMITS) as engine:
        yield engine


def check(answer: Answer, wanted: Reply, checkpoint: Path, name: str = "") -> None:
    """Assert that the rows of a reply are the authors', and that it ended 4 frames behind its text."""
    found, family, num_frames = rows_of(answer.rows, checkpoint), family_at(checkpoint), wanted.codes.shape[1]
    assert isinstance(family.drawing, WordScript)
    assert len(found) == wanted.end + family.drawing.tail_rows - num_frames, name
    expected = wanted.rows[1 + num_frames :, : found.shape[1]][: len(found)]
    assert len(expected) >= len(found) - 3  # the authors' code stops earlier
    differs = (found[: len(expected)] != expected).any(1)
    assert not differs.any(), f"{name}: row {differs.argmax()}"
    assert answer.rows[-1][0] == family.end_of_reply
    assert answer.trailer is not None
    assert not answer.trailer.was_cut


def test_rows_and_word_times_match_published_code_alone_and_batched(engine: Engine, checkpoint: Path) -> None:
    prompts = {f"r{at}": make_prompt(checkpoint, wanted) for at, wanted in enumerate(replies())}
    check(engine.run({"r": prompts["r0"]})["r"], replies()[0], checkpoint, "alone")
    answers = engine.run(prompts, {"r1": 4, "r3": 20})
    for (name, made), wanted in zip(prompts.items(), replies(), strict=True):
        check(answers[name], wanted, checkpoint, f"{name} in a batch")
        assert timed(engine, made, answers[name]) == (wanted.times, wanted.num_frames)
    assert engine.is_clean()


def test_the_fixture_reaches_what_it_tests() -> None:
    assert all(len(wanted.rows) > 1.5 * CONFIG["context"] for wanted in replies())
    assert all(len(np.unique(wanted.rows[:, 1:])) > CONFIG["card"] - 10 for wanted in replies())
    assert len({wanted.scale for wanted in replies()}) == 3


def timed(engine: Engine, made: Prompt, answer: Answer) -> tuple[list[int], int]:
    """Return the steps in which words of a reply begin, and its number of frames, by the state sent with its rows."""
    reply = ReplyState.begin(engine.rules, engine.rules.family.tasks[0], len(made.rows))
    track, times = engine.rules.track(len(made.rows), made.track), list[int]()
    assert isinstance(track, WordTrack)
    for values in answer.states:
        before = reply.own_values[WordScript.word_column]
        reply.move(reply.position + 1, values)
        times += [reply.position - 2] * (reply.own_values[WordScript.word_column] > before)
    assert reply.own_values[WordScript.word_column] == len(track.words)
    return times, reply.num_frames


def parts_of(checkpoint: Path, text: str) -> list[list[int]]:
    """Return the packed words of a text, one by one."""
    return [pack_word(*word) for word in unpack_words(packed(checkpoint, text))]


def test_no_rows_are_computed_while_all_requests_wait_for_words(engine: Engine, checkpoint: Path) -> None:
    """The row that may ask for the second word is generated, and read by neither request of the pair."""
    wanted = replies()[0]
    first, second, *others = parts_of(checkpoint, wanted.text)
    engine.add("one", replace(make_prompt(checkpoint, wanted), track=tuple(first), is_open=True))
    answer = Answer()
    while engine.is_busy():
        engine._step({"one": answer})
    assert engine.scheduler.texts.num_held == 1
    begun = wanted.times[0] - wanted.codes.shape[1]
    assert begun < len(answer.rows) <= wanted.times[1] - wanted.codes.shape[1]
    for ids in (second, *others):
        engine.core.add_request(update_request(TextUpdate("one", np.array(ids, np.int32), is_last=False)))
    engine.core.add_request(update_request(TextUpdate("one", np.array([0], np.int32), is_last=True)))
    while engine.is_busy():
        engine._step({"one": answer})
    check(answer, wanted, checkpoint)
    assert engine.is_clean()


def test_a_limit_of_rows_is_a_cut(engine: Engine, checkpoint: Path) -> None:
    wanted = replies()[2]
    answer = engine.run({"r": make_prompt(checkpoint, wanted, max_rows=40)})["r"]
    found = rows_of(answer.rows, checkpoint)
    assert (found == wanted.rows[1 + wanted.codes.shape[1] :][:40]).all()
    assert answer.trailer is not None
    assert answer.trailer.was_cut


@pytest.mark.nightly
def test_preempted_replies_resume_mid_word(checkpoint: Path) -> None:
    limits = LIMITS | {"max_num_seqs": 4, "max_num_batched_tokens": 24}
    with Engine(checkpoint, **limits, num_gpu_blocks_override=9) as engine:
        prompts = {f"r{at}": make_prompt(checkpoint, wanted) for at, wanted in enumerate([*replies(), *replies()])}
        answers = engine.run(prompts, {"r1": 5, "r2": 9, "r3": 30})
    for answer, wanted in zip(answers.values(), [*replies(), *replies()], strict=True):
        check(answer, wanted, checkpoint)
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0


def speak_word_by_word(
    engine: Engine, checkpoint: Path, wanted: list[Reply], seed: int, slowest: int
) -> dict[str, Answer]:
    """Return replies to texts whose words arrive one by one, at random steps that are at most `slowest` apart."""
    random, answers = np.random.default_rng(seed), dict[str, Answer]()
    left, due = dict[str, list[list[int]]](), dict[str, int]()
    for at, reply in enumerate(wanted):
        name, parts = f"r{at}", parts_of(checkpoint, reply.text)
        engine.add(name, replace(make_prompt(checkpoint, reply), track=tuple(parts[0]), is_open=True))
        answers[name], left[name], due[name] = Answer(), [*parts[1:], [0]], int(random.integers(0, slowest))
    step = 0
    while left or engine.is_busy():
        for name in [name for name, at in due.items() if at <= step and name in left]:
            ids = left[name].pop(0)
            engine.core.add_request(update_request(TextUpdate(name, np.array(ids, np.int32), is_last=not left[name])))
            due[name] = step + int(random.integers(1, slowest + 1))
            if not left[name]:
                del left[name]
        if engine.is_busy():
            engine._step(answers)
        step += 1
        assert step < 8000, "it does not come to an end"
    assert engine.is_clean()
    return answers


@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
@pytest.mark.parametrize(("seed", "slowest"), [(3, 40), *by_night((1, 1), (2, 12), (4, 90))])
def test_incremental_words_give_the_same_reply(checkpoint: Path, is_async: bool, seed: int, slowest: int) -> None:
    """Blocked pairs are preempted in favour of others, always as a whole."""
    wanted, limits = replies() * 2, LIMITS | {"max_num_seqs": 4, "max_num_batched_tokens": 32}
    with Engine(checkpoint, async_scheduling=is_async, **limits, num_gpu_blocks_override=11) as engine:
        answers = speak_word_by_word(engine, checkpoint, wanted, seed, slowest)
        num_preempted = engine.scheduler.stats.values.preemptions_total
    for (name, answer), reply in zip(answers.items(), wanted, strict=True):
        check(answer, reply, checkpoint, name)
        assert answer.trailer is not None
    if slowest > 10:
        assert sum(answer.trailer.held_us for answer in answers.values() if answer.trailer) > 0
        assert num_preempted > 0
