"""VITA-Audio in small: what its own `generate` replies, on every schedule of the engine's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stretto.engine.worker.burst_sampler import BurstStepSampler
from stretto.families.registry import family_at
from stretto.families.vita_audio.family import SCHEDULES
from tests.engine.harness import Answer, Engine
from tests.engine.test_no_sync import as_on_a_gpu
from tests.vita_release import RECORD, convert, prompt_of

pytestmark = pytest.mark.engine

REPLIES = [reply for reply in RECORD["replies"] if reply["schedule"] in SCHEDULES]
# A budget below some prompts, four slots, and blocks for little more than one reply.
TIGHT = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "num_gpu_blocks_override": 6}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("vita"))


@contextmanager
def engine(checkpoint: Path, **engine_args: object) -> Iterator[Engine]:
    running = Engine(checkpoint, max_model_len=160, **engine_args)
    try:
        yield running
        assert running.is_clean()
    finally:
        running.shutdown()


def check(reply: dict[str, Any], answer: Answer, ends: tuple[int, ...]) -> None:
    """Up to the first end, whichever it is, the reply is the authors'; the row that closes it says so."""
    ids = reply["ids"]
    size = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    assert [row[0] for row in answer.rows] == [*ids[:size], ends[0]]
    assert answer.trailer.was_cut == (size == len(ids))


def test_greedy_replies_are_the_authors_in_one_batch(checkpoint: Path) -> None:
    """On all published schedules at once, penalized by what prompt and reply have said, and not."""
    ends = family_at(checkpoint).drawn_ends
    with engine(checkpoint, async_scheduling=True) as running:
        answers = running.run({f"r{at}": prompt_of(reply) for at, reply in enumerate(REPLIES)})
        for at, reply in enumerate(REPLIES):
            check(reply, answers[f"r{at}"], ends)
        reply = REPLIES[-1]  # and as text, which no id is denied either
        check(reply, running.run({"text": prompt_of(reply, "chat")})["text"], ends)


def test_a_step_on_a_device_says_the_same(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row by the kernels of a step, interpreted: a whole burst is penalized by what was said in it."""
    (reply,) = [each for each in REPLIES if each["schedule"] == "turbo" and each["penalty"] > 1.1][:1]
    as_on_a_gpu(monkeypatch)
    with engine(checkpoint, async_scheduling=True, max_num_seqs=2) as running:
        assert isinstance(running.core.model_executor.driver_worker.worker.model_runner.sampler, BurstStepSampler)
        check(reply, running.run({"r": prompt_of(reply)})["r"], family_at(checkpoint).drawn_ends)


def test_chunks_and_preemptions_forget_nothing_that_was_said(checkpoint: Path) -> None:
    """The last of these tests: this engine takes the process's parallel groups with it when it ends."""
    ends = family_at(checkpoint).drawn_ends
    with engine(checkpoint, async_scheduling=False, **TIGHT) as running:
        answers = running.run({f"r{at}": prompt_of(reply) for at, reply in enumerate(REPLIES)})
    for at, reply in enumerate(REPLIES):
        check(reply, answers[f"r{at}"], ends)
    preempted = [at for at, reply in enumerate(REPLIES) if answers[f"r{at}"].trailer.num_preemptions]
    assert any(REPLIES[at]["penalty"] > 1 for at in preempted)
