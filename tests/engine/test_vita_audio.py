"""Replayed modules of VITA-Audio, and two ranks, generate the replies of the authors' `generate`."""

from pathlib import Path
from typing import Any

import pytest

from stretto.engine.worker.step_graphs import padded_sizes
from stretto.engine.worker.step_program import StepSampler
from stretto.families.vita_audio.mechanism import module_rows
from stretto.families.vita_audio.mechanism.module_rows import ModuleAttention
from stretto.family.plugin import family_at
from tests.engine.forking import forked_processes
from tests.engine.harness import Answer, Engine
from tests.engine.test_no_sync import as_on_a_gpu
from tests.engine.test_tensor_parallel import RankCheck, call_ranks, num_slots
from tests.engine.worker.test_step_graphs import FakeRecorder
from tests.vita_release import RECORD, convert, prompt_of

pytestmark = pytest.mark.engine

# Each schedule, named or not, with each of three prompts and each of three penalties.
REPLIES = RECORD["replies"][::4]
# A budget below some prompts, four slots, and blocks for little more than one reply.
TIGHT = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "num_gpu_blocks_override": 6}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("vita"))


def check(reply: dict[str, Any], answer: Answer, ends: tuple[int, ...]) -> None:
    """Check that the reply equals the authors' up to the first end token, and ends with an end token."""
    ids = reply["ids"]
    size = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    assert [row[0] for row in answer.rows] == [*ids[:size], ends[0]]
    assert answer.trailer.was_cut == (size == len(ids))


def test_replayed_mtp_modules_generate_the_same_replies(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed modules were captured before, and must read the rows of the current step.

    Rows are processed one by one by the interpreted kernels of a step. A whole multi-token step is penalized by its own
    earlier rows. A reply with one row per step runs in the same batch.
    """
    replies = [each for each in REPLIES if each["schedule"] in ("turbo", "one prefix", "vanilla")]
    replies = [{**each, "ids": each["ids"][:14]} for each in replies if each["penalty"] > 1.1]
    recorder = FakeRecorder()
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(module_rows, "recorder_of", lambda device, config: recorder)
    monkeypatch.setattr(module_rows, "ModuleAttention", CapturedAttention)
    ends = family_at(checkpoint).drawn_ends
    with Engine(checkpoint, max_model_len=160, async_scheduling=True, max_num_seqs=3) as running:
        assert isinstance(running.core.model_executor.driver_worker.worker.model_runner.sampler, StepSampler)
        running.model_state.capture_inner_cudagraphs()
        assert len(recorder.recordings) == 10 * len(padded_sizes(3))
        answers = running.run({f"r{at}": prompt_of(reply) for at, reply in enumerate(replies)})
        assert running.is_clean()
    for at, reply in enumerate(replies):
        check(reply, answers[f"r{at}"], ends)
    assert len(recorder.recordings) == 10 * len(padded_sizes(3)), "modules were captured while replies ran"
    assert sum(recording.num_replays for recording in recorder.recordings) >= 20, "two bursts at least"


class CapturedAttention(ModuleAttention):
    """Attention that graphs may contain, as on a GPU. On a CPU, its metadata is set at each step."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.max_captured_rows = 512


@pytest.mark.nightly
def test_two_ranks_generate_the_same_replies(checkpoint: Path) -> None:
    """Each rank has half of the attention heads, including those of modules, and half of the output head."""
    ends, replies = family_at(checkpoint).drawn_ends, [reply for reply in REPLIES if reply["penalty"] > 1.1]
    more = {"async_scheduling": True, "tensor_parallel_size": 2, **TIGHT}
    with forked_processes():
        running = Engine(checkpoint, max_model_len=160, **more)
    try:
        answers = running.run({f"r{at}": prompt_of(reply) for at, reply in enumerate(replies)}, after_step=RankCheck())
        assert call_ranks(running, is_text_cut) == [True, True]
        assert call_ranks(running, num_slots) == [0, 0]
        assert running.free_blocks() == running.num_free_blocks
    finally:
        running.shutdown()
    for at, reply in enumerate(replies):
        check(reply, answers[f"r{at}"], ends)
    assert any(answer.trailer.num_preemptions for answer in answers.values())


def is_text_cut(worker: Any) -> bool:
    return worker.worker.model_runner.sampler._draw.heads.is_text_cut
