"""Replies to streamed text equal replies to the complete text, at any pace, in any batch, preempted or not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from stretto.engine.prompt_checks import num_text_ids
from stretto.engine.reply_rules import TextUpdate
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import Answer, Engine, update_request
from tests.random_checkpoints import write_checkpoint
from tests.small_vocabularies import TRACKED_CSM
from tests.tiers import ASYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
NUM_TEXTS = 9


def streaming_engine(folder: Path, is_async: bool) -> Engine:
    limits = {"max_num_batched_tokens": 64, "max_num_seqs": 4, "max_model_len": 192, "num_gpu_blocks_override": 13}
    return Engine(folder, async_scheduling=is_async, **limits)


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, TRACKED_CSM, "small_tracked_csm", hidden=64, layers=2)
    with streaming_engine(folder, request.param) as running:
        yield running


def prompt(engine: Engine, index: int) -> Prompt:
    """Return a prompt for a reply of 20 frames or a few more; its text may be shorter or longer."""
    family: Family = engine.rules.family
    made = make_prompt(family, index, family.tasks[-1].name, guidance_scale=1.0)
    if family.text_track.text_rows:
        return made
    track = (*made.track[:-1][:24], made.track[-1])
    audio = replace(made.sampling.audio, min_rows=0, max_rows=28)
    return replace(made, track=track, sampling=replace(made.sampling, audio=audio))


def num_codes(engine: Engine, given: Prompt) -> int:
    """Return the number of ids in a prompt's text track that are not text."""
    return len(given.track) - num_text_ids(given, engine.rules)


@dataclass
class Writer:
    """Sender of a prompt's text in pieces; `paces` gives the number of steps between two pieces."""

    engine: Engine
    name: str
    words: list[int]
    random: np.random.Generator
    slowest: int
    due: int = 0

    def write(self, step: int) -> None:
        if not self.words or step < self.due:
            return
        size = int(self.random.integers(0, min(4, len(self.words)) + 1))
        piece, self.words = self.words[:size], self.words[size:]
        extend(self.engine, self.name, piece, is_last=not self.words)
        self.due = step + int(self.random.integers(1, self.slowest + 1))


def extend(engine: Engine, name: str, ids: list[int], is_last: bool) -> None:
    engine.core.add_request(update_request(TextUpdate(name, np.array(ids, np.int32), is_last)))


def speak(engine: Engine, seed: int, slowest: int, aborts: int = 0) -> tuple[dict[str, Answer], int]:
    """Return replies to all texts at random paces, some of them later, and the number of steps; abort `aborts`."""
    random, steps = np.random.default_rng(seed), 0
    writers, answers, pending = [], {}, {}
    for index in range(NUM_TEXTS):
        given = prompt(engine, index)
        before = num_codes(engine, given)
        first = before + min(int(random.integers(0, 3)), len(given.track) - before - 1)
        name = f"r{index}"
        pending[name] = int(random.integers(0, 12)), replace(given, track=given.track[:first], is_open=True)
        writers.append(Writer(engine, name, list(given.track[first:]), random, slowest))
        answers[name] = Answer()
    leaving = {f"r{index}": int(random.integers(5, 60)) for index in random.permutation(NUM_TEXTS)[:aborts]}
    while pending or engine.is_busy() or any(writer.words for writer in writers):
        for name in [name for name, (at, _) in pending.items() if at <= steps]:
            engine.add(name, pending.pop(name)[1])
        for name in [name for name, at in leaving.items() if at == steps and name not in pending]:
            engine.core.abort_requests([name])
        for writer in writers:
            if writer.name not in pending:
                writer.write(steps)
        if engine.is_busy():
            engine._step(answers)
        steps += 1
        assert steps < 3000, "it does not come to an end"
    assert engine.is_clean()
    return {name: answer for name, answer in answers.items() if name not in leaving}, steps


@pytest.fixture(scope="module")
def at_once(engine: Engine) -> dict[str, list[list[int]]]:
    """Return the replies to complete texts."""
    made = {f"r{index}": prompt(engine, index) for index in range(NUM_TEXTS)}
    for name, each in made.items() if engine.rules.family.reads_text_by_row else ():
        audio = replace(each.sampling.audio, min_rows=len(each.track))
        made[name] = replace(each, sampling=replace(each.sampling, audio=audio))
    return {name: answer.rows for name, answer in engine.run(made).items()}


@pytest.mark.parametrize(("seed", "slowest", "aborts"), [(4, 40, 3), *by_night((1, 1, 0), (2, 4, 0), (3, 15, 2))])
def test_streamed_text_reply_is_independent_of_pacing(
    engine: Engine, at_once: dict[str, list[list[int]]], seed: int, slowest: int, aborts: int
) -> None:
    before = engine.scheduler.stats.values.preemptions_total
    answers, _ = speak(engine, seed, slowest, aborts)
    assert len(answers) == NUM_TEXTS - aborts
    for name, answer in answers.items():
        assert answer.rows == at_once[name], name
    if slowest > 4:
        assert any(answer.trailer.held_us > 0 for answer in answers.values())
        assert engine.scheduler.stats.values.preemptions_total > before


def test_engine_is_idle_while_all_replies_wait_for_text(engine: Engine) -> None:
    given = prompt(engine, 2)
    num_known = 3 + num_codes(engine, given)
    engine.add("one", replace(given, track=given.track[:num_known], is_open=True))
    answer = Answer()
    while engine.is_busy():
        engine._step({"one": answer})
    if engine.rules.family.reads_text_by_row:
        assert len(answer.rows) == 4, "the frame behind the last word is drawn, and not read"
    else:
        given_rows = [row for row in answer.rows if row[0] in engine.rules.text_rows.ids]
        assert answer.rows[-1] == given_rows[-1], "the row of the next word is begun, and not read"
    assert engine.scheduler.texts.num_held == 1
    engine.core.abort_requests(["one"])
    assert engine.is_clean()
    extend(engine, "one", [20], is_last=True)
    assert not engine.is_busy(), "words for a reply that has ended are nobody's"


def test_stalled_text_streams_do_not_block_other_requests(engine: Engine) -> None:
    """Six texts that do not continue would fill the four slots."""
    names = [f"silent{index}" for index in range(6)]
    for index, name in enumerate(names):
        given = prompt(engine, index)
        engine.add(name, replace(given, track=given.track[: 1 + num_codes(engine, given)], is_open=True))
    answers = {name: Answer() for name in names} | {"other": Answer()}
    while engine.is_busy():
        engine._step(answers)
    assert engine.scheduler.texts.num_held == 6
    engine.add("other", prompt(engine, 3))
    while engine.is_busy():
        engine._step(answers)
    assert answers["other"].trailer is not None
    engine.core.abort_requests(names)
    assert engine.is_clean()
