"""Segments that a limit ends are still closed properly: markers, drain, last code, end of reply."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stretto.engine.reply_rules import ReplyState
from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Answer, Engine
from tests.random_checkpoints import write_checkpoint
from tests.reply_rows import states_of
from tests.speech_families import EIGHT_STREAMS, SPEECHLESS
from tests.tiers import SYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
MAX_MODEL_LEN = 112


class Case:
    def __init__(self, folder: Path, family: Family, name: str):
        self.family = family
        self.folder = write_checkpoint(folder, family, name)
        self.reference = ReferenceModel(self.folder, family, MAX_MODEL_LEN)

    def check(self, engine: Engine, prompt: Prompt) -> tuple[Answer, ReplyState]:
        """Compare the answer with the reference, and return the position that it reached."""
        answer = engine.run({"one": prompt})["one"]
        rows, _ = self.reference.reply(prompt, guess=answer.rows)
        assert answer.rows == [row[: self.family.layout.num_output_streams] for row in rows]
        task = self.family.task(prompt.task)
        reply = ReplyState.begin(engine.rules, task, len(prompt.rows))
        states = states_of(replace(reply), [row[0] for row in answer.rows])
        assert answer.states == states
        reply.move(len(prompt.rows) + len(states), states[-1])
        assert answer.rows[-1][0] == self.family.end_of_reply
        assert answer.trailer.was_cut == self.reference.was_cut
        assert len(prompt.rows) + len(answer.rows) <= MAX_MODEL_LEN
        return answer, reply


@pytest.fixture(scope="module", params=["eight_streams", *by_night("tiny")])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("checkpoint")
    if request.param == "tiny":
        return Case(folder, TINY, "tiny")
    return Case(folder, EIGHT_STREAMS, "eight_streams")


@pytest.fixture(scope="module")
def engine(case: Case) -> Iterator[Engine]:
    with Engine(case.folder, max_model_len=MAX_MODEL_LEN, async_scheduling=True) as running:
        yield running
        assert running.is_clean()


def longest(family: Family, num_rows: int, text: int, audio: int, task: int = 0) -> Prompt:
    """Return a prompt of `num_rows` rows whose segments have at least `text` and `audio` rows."""
    prompt = make_prompt(family, 3, family.tasks[task].name, guidance_scale=2.0)
    sampling = prompt.sampling
    sampling = replace(
        sampling,
        text=replace(sampling.text, min_rows=text, max_rows=text),
        audio=replace(sampling.audio, min_rows=audio, max_rows=audio),
    )
    return Prompt(prompt.task, prompt.rows[:num_rows], sampling)


def test_max_rows_limits_both_segments(case: Case, engine: Engine) -> None:
    answer, reply = case.check(engine, longest(case.family, 20, text=9, audio=13))
    assert reply.num_text_tokens == 9
    assert answer.trailer.was_cut
    assert reply.num_frames <= 13


def test_model_length_ends_audio_with_space_for_the_tail_rows(case: Case, engine: Engine) -> None:
    answer, reply = case.check(engine, longest(case.family, 60, text=20, audio=90))
    assert answer.trailer.was_cut
    if not case.family.drawing.state:
        assert 60 + len(answer.rows) == MAX_MODEL_LEN
        assert reply.num_frames == MAX_MODEL_LEN - 60 - 20 - 3 - engine.rules.num_tail_rows
        assert answer.rows[-1][-1] in case.family.layout.audio[-1], "the last row carries the last code"


def test_model_length_ends_text_with_space_for_one_frame(case: Case, engine: Engine) -> None:
    answer, reply = case.check(engine, longest(case.family, 60, text=90, audio=90))
    assert answer.trailer.was_cut
    assert reply.num_frames == 1


def test_model_length_ends_a_text_reply(case: Case, engine: Engine) -> None:
    answer, _ = case.check(engine, longest(case.family, 60, text=90, audio=90, task=-1))
    assert answer.trailer.was_cut
    assert 60 + len(answer.rows) == MAX_MODEL_LEN


def test_reply_within_its_limits_is_not_marked_cut(case: Case, engine: Engine) -> None:
    prompt = make_prompt(case.family, 3, case.family.tasks[0].name)
    sampling = replace(prompt.sampling, text=replace(prompt.sampling.text, max_rows=9))
    answer, reply = case.check(engine, Prompt(prompt.task, prompt.rows[:10], sampling))
    if reply.num_text_tokens < 9 and reply.num_frames < sampling.audio.max_rows:
        assert not answer.trailer.was_cut


@pytest.mark.parametrize("is_async", SYNC_BY_DAY)
def test_empty_alignment_text_ends_the_audio_immediately(tmp_path: Path, is_async: bool) -> None:
    case = Case(tmp_path, SPEECHLESS, "speechless")
    with Engine(case.folder, max_model_len=MAX_MODEL_LEN, async_scheduling=is_async) as running:
        answer, reply = case.check(running, longest(SPEECHLESS, 20, text=4, audio=13))
    assert reply.num_frames == 0
    text, ends = 4, 4  # end of text, transition, end of audio, end of reply
    assert len(answer.rows) == text + ends
