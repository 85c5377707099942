"""Long prompts and replies are correct, and steps cost no more at the end than at the beginning."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint
from tests.speech_families import LONG
from tests.tiers import by_night

pytestmark = pytest.mark.engine
PROMPT_ROWS = 8000
ENGINE_ARGS = {"max_model_len": LONG.max_model_len, "max_num_batched_tokens": 1024, "kv_cache_memory_bytes": 64 << 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_checkpoint(folder, LONG, "long", hidden=64, layers=2)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder, async_scheduling=True, **ENGINE_ARGS) as running:
        yield running
        assert running.is_clean()


def long_prompt(index: int, task: str, guidance_scale: float) -> Prompt:
    """Return a prompt of `PROMPT_ROWS` rows, with codes if its task has audio input."""
    prompt = make_prompt(LONG, index, task, guidance_scale=guidance_scale)
    rows = np.resize(prompt.rows, (PROMPT_ROWS, prompt.rows.shape[1]))
    rows[:, 0] = np.random.default_rng(index).integers(16, 47, PROMPT_ROWS)
    return replace(prompt, rows=rows)


@pytest.mark.parametrize(
    ("index", "task", "scale"),
    [
        (3, "chat", 2.0),
        # Beside text and audio that are guided: each alone, and unguided.
        *by_night((4, "speak", 2.0), (5, "chat", 1.0), (6, "listen", 1.0)),
    ],
)
def test_prompts_of_8000_rows_are_exact(folder: Path, engine: Engine, index: int, task: str, scale: float) -> None:
    prompt = long_prompt(index, task, scale)
    first = engine.num_steps
    answer = engine.run({"one": prompt})["one"]
    rows, lead = ReferenceModel(folder, LONG, LONG.max_model_len).reply(prompt, guess=answer.rows)
    assert lead > 1e-4, "the reference itself was nearly undecided: choose another seed"
    assert answer.rows == [row[: LONG.layout.num_output_streams] for row in rows]
    assert engine.num_steps - first >= PROMPT_ROWS // 1024 + len(rows), "it was not read in chunks"


class Calls:
    """Counter of Python and C calls, which measures a step's cost independently of other load."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, frame: object, event: str, arg: object) -> None:
        self.number += event in ("call", "c_call")


@pytest.mark.parametrize(
    "scale", [pytest.param(1.0, marks=pytest.mark.nightly), 2.0]
)  # 2.0: two such replies, and more
def test_calls_per_step_do_not_grow_with_reply_length(engine: Engine, scale: float) -> None:
    prompt = make_prompt(LONG, 3, "speak", guidance_scale=scale)
    audio = replace(prompt.sampling.audio, min_rows=700, max_rows=700)
    prompt = replace(prompt, sampling=replace(prompt.sampling, audio=audio))
    calls, counts = Calls(), list[int]()

    def note(running: Engine) -> None:
        counts.append(calls.number)
        in_span = 200 <= len(counts) < 328 or 550 <= len(counts) < 678
        sys.setprofile(calls if in_span else None)

    try:
        answer = engine.run({"one": prompt}, after_step=note)["one"]
    finally:
        sys.setprofile(None)
    assert answer.trailer.num_guided_frames == (700 if scale != 1.0 else 0)
    first, last = counts[328] - counts[200], counts[678] - counts[550]
    assert first > 0
    assert abs(last - first) < 0.02 * first, "a step does more the longer the reply"
