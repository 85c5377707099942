"""Qwen3-Omni's thinker in the engine: ids equal those of transformers' `generate`, and of the slow reference."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import RequestStatus

from plugins.qwen3_omni.lab.random_qwen3_omni import small_config
from plugins.qwen3_omni.tests.engine.thinker_case import WIDER, Case
from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import (
    END,
    Processor,
    Theirs,
    ThinkerReference,
    Written,
    conversations,
    convert,
    speech,
)
from stretto.engine.worker.segment_state import denied_text
from stretto.records.prompt import Prompt
from stretto.records.sampling import SegmentSampling
from tests.engine.harness import Engine
from tests.tiers import by_night

pytestmark = pytest.mark.engine
LENGTH, NUM_IDS = 160, 24
# 4 of 6 replies at once, prompts in chunks, and room for hardly one of the longest.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "num_gpu_blocks_override": 7}


# Release, seed of its weights, and True for asynchronous scheduling.
SETTINGS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "whole": (small_config(), 1, True),
    "wider": (WIDER, 2, True),
    "whole, sync": (small_config(), 1, False),
    "wider, sync": (WIDER, 2, False),
}


@pytest.fixture(scope="module", params=["whole", *by_night("wider", "whole, sync", "wider, sync")])
def case(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Case]:
    config, seed, is_async = SETTINGS[request.param]
    checkpoint = convert(tmp_path_factory.mktemp("thinker"), config, seed)
    with Engine(checkpoint, async_scheduling=is_async, max_model_len=LENGTH, **TIGHT) as engine:
        yield Case(Written(checkpoint), engine, Theirs(config, seed), Processor(checkpoint))


def ids_of(rows: list[list[int]]) -> list[int]:
    return [row[0] for row in rows]


def test_greedy_replies_match_transformers(
    case: Case, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, float], None]
) -> None:
    """Replies to text and audio are batched, chunked, preempted, cached, and unbatched.

    Raw logits of unbatched replies agree to 3e-5 of the largest.
    """
    expected, expected_logits = dict[str, list[int]](), dict[str, np.ndarray]()
    for name, pieces in conversations().items():
        ids, logits = case.theirs.reply(case.processor.inputs(pieces), NUM_IDS)
        first, second = np.sort(logits)[:, -2:].T[::-1]
        assert (first - second).min() > 1e-4, f"{name}: nearly undecided: choose another seed"
        expected[name], expected_logits[name] = ids if ids[-1] == END else [*ids, END], logits
    assert sum(len(ids) > 5 for ids in expected.values()) >= 4
    prompts = {name: case.written.prompt(pieces, NUM_IDS) for name, pieces in conversations().items()}
    num_preemptions = 0
    for _ in range(2):
        answers = case.engine.run(prompts, dict.fromkeys(prompts, 0))
        num_preemptions += sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer)
        assert {name: ids_of(answer.rows) for name, answer in answers.items()} == expected
    assert num_preemptions > 0
    heads = case.engine.core.model_executor.driver_worker.worker.model_runner.sampler._draw.heads
    product, largest = heads.text, 0.0
    for name, prompt in prompts.items():
        recorded = list[np.ndarray]()
        with monkeypatch.context() as patch:
            patch.setattr(heads, "text", lambda hidden, into=recorded: _kept(product(hidden), into))
            assert ids_of(case.engine.run({"one": prompt})["one"].rows) == expected[name]
        theirs = expected_logits[name]
        assert len(recorded) >= len(theirs) > 0
        difference = np.abs(np.stack(recorded[: len(theirs)]) - theirs).max() / np.abs(theirs).max()
        largest = max(largest, float(difference))
    assert case.engine.is_clean()
    record_property("largest_difference", largest)
    assert largest <= 3e-5  # rounding


def _kept(logits: Any, into: list[np.ndarray]) -> Any:
    """Append the first row of logits to `into`, and return them."""
    into.append(logits[0].numpy().copy())
    return logits


def test_penalised_replies_match_transformers(case: Case) -> None:
    """The penalty counts the ids of the prompt, those in rows of audio too; batched, preempted and cached."""
    penalties = dict(zip(conversations(), cycle((1.05, 1.3, 2.0, 0.8))))
    expected = dict[str, list[int]]()
    for name, pieces in conversations().items():
        ids, logits = case.theirs.reply(case.processor.inputs(pieces), NUM_IDS, penalties[name])
        first, second = np.sort(logits)[:, -2:].T[::-1]
        assert (first - second).min() > 1e-4, f"{name}: nearly undecided: choose another penalty"
        expected[name] = ids if ids[-1] == END else [*ids, END]
    prompts = {
        name: case.written.prompt(pieces, NUM_IDS, repetition_penalty=penalties[name])
        for name, pieces in conversations().items()
    }
    for _ in range(2):
        answers = case.engine.run(prompts, dict.fromkeys(prompts, 0))
        assert {name: ids_of(answer.rows) for name, answer in answers.items()} == expected
    assert case.engine.is_clean()


def sampled(prompt: Prompt, index: int) -> Prompt:
    """Return the prompt with sampling parameters that vary with `index`."""
    text = (
        SegmentSampling(0.7, 20, 0.8, max_rows=NUM_IDS),
        SegmentSampling(1.2, 0, 1.0, min_rows=6, max_rows=12 + index),
        SegmentSampling(0.9, 0, 0.6, max_rows=NUM_IDS),
    )[index % 3]
    penalty = (1.0, 1.2)[index % 2]
    sampling = replace(prompt.sampling, text=text, seed=100 + index, repetition_penalty=penalty)
    return replace(prompt, sampling=sampling)


def test_sampled_replies_match_the_reference(case: Case) -> None:
    """Replies are preempted and in batches; the reference samples one id at a time from transformers' thinker."""
    reference = ThinkerReference(case.written.checkpoint, LENGTH, case.theirs)
    prompts = {
        f"{name} {seed}": sampled(case.written.prompt(pieces, NUM_IDS), 2 * index + seed)
        for index, (name, pieces) in enumerate(conversations().items())
        for seed in range(2)
    }
    answers = case.engine.run(prompts)
    assert case.engine.is_clean()
    for name, prompt in prompts.items():
        expected, lead = reference.reply(prompt, guess=answers[name].rows)
        assert lead > 1e-5, f"{name}: nearly undecided: choose another seed"
        assert answers[name].rows == expected, name
    assert len({tuple(ids_of(answer.rows)) for answer in answers.values()}) > 8


def test_text_may_not_end_before_its_minimum_length(case: Case) -> None:
    """The thinker's text may have every id, also the one that ends it."""
    before, after = denied_text(case.engine.rules)[0]
    assert before.nonzero()[0].tolist() == [END]
    assert not after.any()


class Seizure:
    """Takes all free blocks of an engine until the request `heard` is preempted in the prefill of its recording.

    Args:
        engine: Engine with an older reply, which keeps its blocks.
        first_row: Row of the prompt after which the blocks are taken.
        is_cached: False to take the blocks of the preempted prefill, too, so that none of its rows stays cached.

    Attributes:
        num_computed: Rows of the prompt that the preempted prefill had computed; 0 before.
    """

    def __init__(self, engine: Engine, first_row: int, is_cached: bool) -> None:
        self._scheduler, self._pool = engine.scheduler, engine.scheduler.kv_cache_manager.block_pool
        self._first_row, self._is_cached = first_row, is_cached
        self._taken = list[KVCacheBlock]()
        self.num_computed = 0

    def __call__(self, engine: Engine) -> None:
        """Take the blocks, or give them back; to be called after each step."""
        heard = self._scheduler.requests.get("heard")
        if self._taken and heard.status == RequestStatus.PREEMPTED:
            if not self._is_cached:
                self._take()
            self._pool.free_blocks(self._taken)
            self._taken = []
        elif self._taken or (not self.num_computed and heard and heard.num_computed_tokens > self._first_row):
            self.num_computed = heard.num_computed_tokens
            self._take()

    def _take(self) -> None:
        self._taken += self._pool.get_new_blocks(self._pool.get_num_free_blocks())  # which are cached no longer


@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "from the start"])
def test_reply_preempted_inside_its_recording_equals_the_reply_alone(case: Case, is_cached: bool) -> None:
    """A prefill in steps of 23 rows is preempted at its first, second and third end inside a recording of 74 rows.

    An older reply has the other row of each step. The prefill continues after the rows that are cached, or begins anew.
    """
    asked, heard = conversations()["text, audio"]
    beside, engine, ends = case.written.prompt((asked,), NUM_IDS), case.engine, set[int]()
    expected = engine.run({"beside": beside})["beside"].rows
    for begun in range(3):
        pieces = (asked, replace(heard, pcm=speech(5.7, 10 + begun)))  # whose rows are not cached yet
        prompt = sampled(case.written.prompt(pieces, NUM_IDS), begun)
        (audio,) = prompt.audios
        seizure = Seizure(engine, audio.first_row + 23 * begun, is_cached)
        answers = engine.run({"beside": beside, "heard": prompt}, {"heard": 3}, after_step=seizure)
        ends.add(seizure.num_computed - audio.first_row)
        engine.scheduler.reset_prefix_cache()
        alone = engine.run({"alone": prompt})["alone"].rows
        assert (answers["beside"].rows, answers["heard"].rows) == (expected, alone)
        assert engine.is_clean()
    assert len(ends) == 3
    assert 0 < min(ends) < max(ends) < audio.num_rows


def test_replies_depend_on_the_recording(case: Case) -> None:
    """Prompts with equal ids and different recordings share no cached rows."""
    (heard,) = conversations()["audio"]
    pieces = [replace(heard, pcm=speech(3.0, seed)) for seed in range(4)]
    prompts = [sampled(case.written.prompt((piece,), NUM_IDS), 1) for piece in pieces]
    assert all(np.array_equal(prompt.rows, prompts[0].rows) for prompt in prompts)
    replies = [case.engine.run({"one": prompt})["one"].rows for prompt in prompts]
    assert len({tuple(ids_of(rows)) for rows in replies}) > 1
