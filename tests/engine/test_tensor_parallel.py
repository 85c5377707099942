"""Two workers sample the same codes as one; heads, embeddings and the state of every rank are compared."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt, make_prompts
from tests.engine.forking import forked_processes
from tests.engine.harness import Answer, Engine
from tests.random_checkpoints import write_checkpoint, write_modules
from tests.small_vocabularies import CSM, OPUSLM, families_with_conditions
from tests.speech_families import MODULES, WIDE_TEXT
from tests.tiers import by_night

pytestmark = pytest.mark.engine

# Chunked prefills, four slots, and blocks for little more than one pair.
TIGHT = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "max_model_len": 160, "num_gpu_blocks_override": 9}
# The first two cut their text heads between the ranks, the others keep theirs, where they have one, whole on both.
CASES = {
    "wide_text": (WIDE_TEXT, "wide_text", False),
    "opuslm": (OPUSLM, "small_opuslm", True),
    "tiny": (TINY, "tiny", True),
    "csm": (CSM, "small_csm", True),
    "modules": (MODULES, "modules", True),
    **{name: (family, name, True) for name, family in families_with_conditions().items()},
}
BACKBONES = {"opuslm": "olmo2", "csm": "llama", **dict.fromkeys(families_with_conditions(), "llama")}


def limits(family: Family) -> dict[str, int]:
    """Return limits with little more memory than needed; without CFG pairs, fewer blocks are enough."""
    return TIGHT if family.guided_streams else {**TIGHT, "num_gpu_blocks_override": 6}


def prompts_of(family: Family) -> dict[str, Prompt]:
    """Return eight prompts, and four more CFG pairs if there are any; else replies need one more block."""
    prompts = make_prompts(family, 8)
    if family.guided_streams:
        speaking = next(task.name for task in family.tasks if task.has_audio_segment)
        pairs = {f"pair{index}": make_prompt(family, index, speaking, guidance_scale=2.0) for index in range(4)}
        return prompts | pairs
    lengths = {"min_rows": 40, "max_rows": 44}
    return {
        name: replace(each, sampling=replace(each.sampling, audio=replace(each.sampling.audio, **lengths)))
        for name, each in prompts.items()
    }


def model_state(worker: Any) -> Any:
    return worker.worker.model_runner.model_state


def digest(worker: Any) -> str:
    """Return a hash of a rank's slots: states, limits, texts, codes and partners."""
    slots = model_state(worker).slots
    tables = (slots.tables.state, slots.tables.limits, slots.tables.texts, slots.tables.codes)
    seen = hashlib.sha256(repr((slots.slot_of, slots.partner.tolist())).encode())
    for table in tables:
        seen.update(np.asarray(table).tobytes())
    return seen.hexdigest()


def num_slots(worker: Any) -> int:
    return len(model_state(worker).slots.slot_of)


def call_ranks(engine: Engine, function: Any) -> list[Any]:
    return engine.core.model_executor.collective_rpc(function)


class RankCheck:
    """Check after every eighth step that all ranks have the same state."""

    def __init__(self) -> None:
        self.num_checks = 0

    def __call__(self, engine: Engine) -> None:
        if engine.num_steps % 8 == 0:
            first, *others = call_ranks(engine, digest)
            assert others == [first], f"after {engine.num_steps} steps"
            self.num_checks += 1


# By day heads that are cut; by night pairs, wide text, a depth transformer, modules and conditions.
PARAMS = ["opuslm", *by_night(*(name for name in CASES if name != "opuslm"))]


@pytest.fixture(scope="module", params=PARAMS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path, bool]:
    family, name, is_async = CASES[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    if family is MODULES:
        return family, write_modules(folder, family, name), is_async
    return family, write_checkpoint(folder, family, name, backbone=BACKBONES.get(family.name, "qwen3")), is_async


@pytest.fixture(scope="module")
def alone(case: tuple[Family, Path, bool]) -> dict[str, Answer]:
    """Return the answers of a single worker."""
    family, folder, is_async = case
    engine = Engine(folder, async_scheduling=is_async, **limits(family))
    answers = engine.run(prompts_of(family))
    engine.shutdown()
    return answers


@pytest.fixture(scope="module")
def two_ranks(case: tuple[Family, Path, bool]) -> Iterator[Engine]:
    family, folder, is_async = case
    with forked_processes():
        engine = Engine(folder, async_scheduling=is_async, tensor_parallel_size=2, **limits(family))
    yield engine
    engine.shutdown()


def test_two_ranks_equal_one_rank(case: tuple[Family, Path, bool], alone: dict[str, Answer], two_ranks: Engine) -> None:
    """Requests are guided and unguided, text and audio, chunked and preempted; there are more requests than slots."""
    family, _, _ = case
    prompts, check = prompts_of(family), RankCheck()
    answers = two_ranks.run(prompts, after_step=check)
    assert check.num_checks > 5
    assert {name: answer.rows for name, answer in answers.items()} == {name: a.rows for name, a in alone.items()}
    guided = [name for name, prompt in prompts.items() if prompt.sampling.guidance_scale != 1.0]
    of_interest = guided if family.guided_streams else list(prompts)
    assert any(answers[name].trailer.num_preemptions for name in of_interest), "nothing was preempted"
    assert two_ranks.free_blocks() == two_ranks.num_free_blocks
    assert call_ranks(two_ranks, num_slots) == [0, 0]


def text_rows(worker: Any) -> int:
    return worker.worker.model_runner.sampler._draw.heads._text.num_columns


def test_large_text_heads_are_sharded(case: tuple[Family, Path, bool], two_ranks: Engine) -> None:
    family, _, _ = case
    if two_ranks.rules.num_text_ids == 0:
        return  # there is none
    rows = {"wide_text": 512, "opuslm": 224}.get(family.name, two_ranks.rules.num_text_ids)
    assert call_ranks(two_ranks, text_rows) == [rows, rows]


FAILING = """
from tests.engine.harness import Engine
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

def test_that_fails():
    queue = MessageQueue(1, 1)
    reader = MessageQueue.create_from_handle(queue.export_handle(), 0)
    raise AssertionError
"""


@pytest.mark.nightly
def test_run_ends_after_a_failure_whose_traceback_keeps_a_queue(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING)
    words = ["-q", "-p", "no:cacheprovider", "-p", "tests.engine.conftest", f"--rootdir={tmp_path}", "-c", "/dev/null"]
    command = [sys.executable, "-m", "pytest", *words, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500)
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
