"""MCTP modules: every reply equals one recomputed from scratch, row by row."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import Answer, Engine
from tests.random_checkpoints import write_modules
from tests.reference.module_lm import ModuleReference
from tests.speech_families import MODULE_STEPS, MODULES, PENALIZED_SPEECH
from tests.tiers import by_night

pytestmark = pytest.mark.engine
MAX_MODEL_LEN = 160
SCHEDULES = list(MODULE_STEPS.names)
# More rows than modules, and schedules with long or endless stretches in which modules read rows without a burst.
NUMBERS = [(2, 9), (1, 2, 12, 3), (1, 3, 12, 0)]
TIGHT = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "num_gpu_blocks_override": 9}
CHUNKED = {"max_num_batched_tokens": 24, "max_num_seqs": 4}
TINY_BUDGET = {"max_num_batched_tokens": 13, "max_num_seqs": 3}
Rows = list[list[int]]


class Checkpoint:
    """A random checkpoint and the reference's replies."""

    def __init__(self, folder: Path, family: Family = MODULES):
        self.folder = write_modules(folder, family, family.name)
        self._reference = ModuleReference(folder, family, MAX_MODEL_LEN)
        self._replies: dict[str, Rows] = {}

    def reply(self, prompt: Prompt, guess: Rows | None = None) -> Rows:
        key = repr((prompt.task, prompt.sampling, prompt.rows.tolist()))
        if key not in self._replies:
            rows, lead = self._reference.reply(prompt, guess=guess or ())
            assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
            self._replies[key] = rows
        return self._replies[key]

    def check(self, prompts: dict[str, Prompt], answers: dict[str, Answer]) -> None:
        wrong = [
            name for name, prompt in prompts.items() if answers[name].rows != self.reply(prompt, answers[name].rows)
        ]
        assert not wrong, {name: (prompts[name].sampling.schedule, prompts[name].task) for name in wrong}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def roomy(checkpoint: Checkpoint) -> Iterator[Engine]:
    with Engine(checkpoint.folder, max_model_len=MAX_MODEL_LEN) as engine:
        yield engine


def prompts() -> dict[str, Prompt]:
    """Return two prompts for each named schedule, greedy and sampled, and one for each other schedule."""
    names = [*SCHEDULES, *SCHEDULES, *NUMBERS]
    made = {f"r{index}": make_prompt(MODULES, index) for index in range(len(names))}
    return {
        request_id: replace(prompt, sampling=replace(prompt.sampling, schedule=name))
        for (request_id, prompt), name in zip(made.items(), names, strict=True)
    }


@pytest.mark.parametrize(
    ("limits", "is_async"),
    [
        pytest.param(TIGHT, True, id="tight-async"),
        *by_night(
            ({}, True),
            (TIGHT, False),
            (CHUNKED, True),
            (TINY_BUDGET, False),
            ids=["roomy-async", "tight-sync", "chunked-async", "tiny_budget-sync"],
        ),
    ],
)
def test_mtp_replies_match_the_reference_for_all_engine_schedules(
    checkpoint: Checkpoint, limits: dict[str, int], is_async: bool
) -> None:
    """Prompts arrive one by one, then again with the prefix cache."""
    given, engine = (
        prompts(),
        Engine(checkpoint.folder, max_model_len=MAX_MODEL_LEN, async_scheduling=is_async, **limits),
    )
    arrivals = {} if limits is TIGHT else {name: 3 * index for index, name in enumerate(given)}
    try:
        answers, again = engine.run(given, arrivals), engine.run(given)
        assert engine.is_clean()
    finally:
        engine.shutdown()
    checkpoint.check(given, answers)
    checkpoint.check(given, again)
    preempted = [name for name, answer in answers.items() if answer.trailer.num_preemptions]
    assert bool(preempted) == (limits is TIGHT)
    assert any(answers[name].trailer.num_guided_frames for name in preempted) or limits is not TIGHT


def test_repetition_penalty_applies_within_multi_token_steps(tmp_path: Path) -> None:
    """Replies are sampled, chunked and preempted, and most are guided. Other tests also penalize text."""
    known, given, codes = Checkpoint(tmp_path, PENALIZED_SPEECH), {}, PENALIZED_SPEECH.layout.audio[0]
    # The first two begin with all blocks there are, and need more after five steps.
    for index, schedule in ((6, "turbo"), (2, "boost"), (5, "vanilla"), (3, "balance"), (1, "turbo_2")):
        made = make_prompt(PENALIZED_SPEECH, index, schedule=schedule)
        made.rows[1::5, 0] = codes.start + np.arange(len(made.rows[1::5])) % len(codes)
        audio = replace(made.sampling.audio, temperature=0.9, min_rows=24, max_rows=24)
        given[f"r{index}"] = replace(made, sampling=replace(made.sampling, audio=audio))
    with Engine(known.folder, max_model_len=MAX_MODEL_LEN, async_scheduling=True, **TIGHT) as engine:
        answers = engine.run(given)
        assert engine.is_clean()
    known.check(given, answers)
    turbo = given["r6"]
    free = replace(turbo, sampling=replace(turbo.sampling, repetition_penalty=1.0))
    assert known.reply(free) != known.reply(turbo)
    guided = [answer for answer in answers.values() if answer.trailer.num_guided_frames]
    assert any(answer.trailer.num_preemptions for answer in guided)


def test_mtp_replies_are_identical_alone_and_batched(checkpoint: Checkpoint, roomy: Engine) -> None:
    for name, prompt in prompts().items():
        checkpoint.check({name: prompt}, roomy.run({name: prompt}))


def short(rows: np.ndarray, schedule: str | tuple[int, ...], num_rows: int = 9) -> Prompt:
    """Return a greedy unguided reply of a few rows after `rows`."""
    made = make_prompt(MODULES, 0, "speak", schedule=schedule, guidance_scale=1.0)
    audio = replace(made.sampling.audio, min_rows=num_rows, max_rows=num_rows)
    return replace(made, rows=rows.astype(np.int32), sampling=replace(made.sampling, audio=audio))


def spoken(num_rows: int, seed: int) -> np.ndarray:
    """Return rows of a prompt with text on stream 0 and nothing on the others."""
    rows = np.zeros((num_rows, MODULES.layout.num_input_streams), np.int32)
    rows[:, 0] = np.random.default_rng(seed).integers(16, 47, num_rows)
    return rows


def test_prefix_cache_blocks_are_not_shared_across_differing_prompts(checkpoint: Checkpoint, roomy: Engine) -> None:
    """Modules read rows together with later rows, so a shared block would end with rows of the other prompt."""
    first = spoken(96, 1)
    roomy.run({"first": short(first, "boost")})
    for at in range(64, 72):
        prompt = short(np.concatenate([first[:at], spoken(5, at)]), "boost")
        checkpoint.check({"second": prompt}, roomy.run({"second": prompt}))


def test_aborted_mtp_reply_leaves_no_incomplete_cached_blocks(checkpoint: Checkpoint, roomy: Engine) -> None:
    for after in range(4, 9):
        schedule = "boost" if after % 2 else (1, 2, 60, 0)
        asked = short(spoken(41 + 3 * after % 8, after), schedule, num_rows=40)
        said = np.array(checkpoint.reply(asked)[:36], np.int32)
        roomy.run({"first": asked}, aborts={"first": after})
        second = short(np.concatenate([asked.rows, said, spoken(33, 100 + after)]), "boost")
        checkpoint.check({"second": second}, roomy.run({"second": second}))


def test_blocks_unread_by_mtp_modules_are_not_shared_with_mtp_schedules(checkpoint: Checkpoint, roomy: Engine) -> None:
    rows = spoken(90, 7)
    for schedule in ("vanilla", "turbo", "vanilla"):
        checkpoint.check({"one": short(rows, schedule)}, roomy.run({"one": short(rows, schedule)}))
