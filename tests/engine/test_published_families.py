"""Bagpiper, OpusLM and OpusLM dialogue in small: whatever the schedule, every reply is the reference's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from python_backend.families.base import Family
from python_backend.families.prompt import Prompt
from scripts.random_checkpoint import write_checkpoint
from tests.engine.harness import Answer, Engine
from tests.engine.prompts import make_prompts
from tests.reference.speech_lm import Reference
from tests.small_vocabularies import FAMILIES

pytestmark = pytest.mark.engine

BACKBONES = {"bagpiper": "qwen3", "opuslm": "olmo2", "opuslm_dialogue": "llama"}
TIGHT = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "num_gpu_blocks_override": 9}
LENGTH = 160


class Checkpoint:
    """A small random checkpoint and the reference's replies to what it has been asked."""

    def __init__(self, folder: Path, name: str):
        self.family: Family = FAMILIES[name]
        backbone = BACKBONES[self.family.name]
        self.folder = write_checkpoint(folder, self.family, name, layers=2, backbone=backbone)
        self.reference = Reference(self.folder, self.family, LENGTH)
        self._replies: dict[int, list[list[int]]] = {}
        self.lead = float("inf")

    def reply(self, prompt: Prompt) -> list[list[int]]:
        """The output streams of every row of the reference's reply."""
        key = hash((prompt.task, prompt.sampling, prompt.rows.tobytes()))
        if key not in self._replies:
            rows, lead = self.reference.reply(prompt)
            assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
            self.lead = min(self.lead, lead)
            self._replies[key] = [row[: self.family.layout.num_output_streams] for row in rows]
        return self._replies[key]

    def check(self, prompts: dict[str, Prompt], answers: dict[str, Answer]) -> None:
        for request_id, prompt in prompts.items():
            assert answers[request_id].rows == self.reply(prompt), request_id


@pytest.fixture(scope="module", params=list(FAMILIES), ids=[family.name for family in FAMILIES.values()])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param)


@contextmanager
def engine(checkpoint: Checkpoint, **engine_args: object) -> Iterator[Engine]:
    running = Engine(checkpoint.folder, max_model_len=LENGTH, **engine_args)
    try:
        yield running
        assert running.is_clean()
    finally:
        running.shutdown()


@pytest.fixture(scope="module")
def roomy(checkpoint: Checkpoint) -> Iterator[Engine]:
    with engine(checkpoint, async_scheduling=True) as running:
        yield running


def test_replies_in_one_batch_are_the_reference_s(checkpoint: Checkpoint, roomy: Engine) -> None:
    prompts = make_prompts(checkpoint.family, 15)
    checkpoint.check(prompts, roomy.run(prompts))
