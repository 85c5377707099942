"""Equal seeds give equal codes on every stream: unbatched, batched, preempted, restarted, with either scheduler."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint
from tests.speech_families import EIGHT_STREAMS
from tests.tiers import SYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
FAMILIES: dict[str, Family] = {"eight_streams": EIGHT_STREAMS, "tiny": TINY}
MAX_MODEL_LEN = 160
TIGHT = {"max_num_seqs": 4, "max_num_batched_tokens": 48, "num_gpu_blocks_override": 9}
Rows = list[list[int]]


@pytest.fixture(scope="module", params=["eight_streams", *by_night("tiny")])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), FAMILIES[name], name, hidden=64, layers=2)


@pytest.fixture(scope="module")
def prompts(name: str) -> dict[str, Prompt]:
    """Return prompts for sampled replies, most of them guided."""
    family: Family = FAMILIES[name]
    made = {}
    for index in range(8):
        prompt = make_prompt(family, index, family.tasks[0].name, guidance_scale=(2.5, 2.5, 1.0)[index % 3])
        sampling = prompt.sampling
        text, audio = (
            replace(sampling.text, temperature=0.9),
            replace(sampling.audio, temperature=0.9, min_rows=30, max_rows=40),
        )
        sampling = replace(sampling, text=text, audio=audio)
        if "script_temperature" in family.options:
            sampling = replace(sampling, script_temperature=0.9)
        made[f"r{index}"] = replace(prompt, rows=prompt.rows[:33], sampling=sampling)
    return made


@contextmanager
def started(folder: Path, **engine_args: object) -> Iterator[Engine]:
    with Engine(folder, max_model_len=MAX_MODEL_LEN, **engine_args) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(folder: Path, prompts: dict[str, Prompt]) -> dict[str, Rows]:
    with started(folder) as engine:
        return {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}


@pytest.mark.parametrize("is_async", SYNC_BY_DAY)
def test_seeded_sampling_is_identical_batched_and_alone(
    folder: Path, prompts: dict[str, Prompt], alone: dict[str, Rows], is_async: bool
) -> None:
    with started(folder, async_scheduling=is_async) as engine:
        answers = engine.run(prompts)
    assert {name: answer.rows for name, answer in answers.items()} == alone


@pytest.mark.parametrize("is_async", SYNC_BY_DAY)
def test_preemption_does_not_change_sampling(
    folder: Path, prompts: dict[str, Prompt], alone: dict[str, Rows], is_async: bool
) -> None:
    with started(folder, async_scheduling=is_async, **TIGHT) as engine:
        answers = engine.run(prompts)
    preempted = {name for name, answer in answers.items() if answer.trailer.num_preemptions}
    assert any(prompts[name].sampling.guidance_scale != 1.0 for name in preempted)
    assert {name: answer.rows for name, answer in answers.items()} == alone


def test_restarted_engine_reproduces_seeded_replies(
    folder: Path, prompts: dict[str, Prompt], alone: dict[str, Rows]
) -> None:
    last = list(prompts)[:-4:-1]
    with started(folder) as engine:
        again = {name: engine.run({name: prompts[name]})[name].rows for name in last}
    assert again == {name: alone[name] for name in last}


def test_other_seeds_sample_other_codes(
    folder: Path, prompts: dict[str, Prompt], alone: dict[str, Rows], name: str
) -> None:
    layout = FAMILIES[name].layout
    prompt = prompts["r0"]
    other = replace(prompt, sampling=replace(prompt.sampling, seed=prompt.sampling.seed + 1))
    with started(folder) as engine:
        rows = engine.run({"r0": other})["r0"].rows
    for stream in layout.codebook_streams:
        assert [row[stream] for row in rows] != [row[stream] for row in alone["r0"]], stream
