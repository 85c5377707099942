"""Turbo's T3 in the engine: codes are those of its authors' own loop, penalized after top-k and top-p."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkpoints.random_chatterbox import convert_turbo
from stretto.families.chatterbox.family import END_OF_SPEECH, TurboVocabulary
from stretto.families.chatterbox.prompt import open_turbo
from stretto.families.plugin import VOCABULARY, config_at, family_at
from stretto.records.prompt import InputAudio, Prompt
from stretto.weights.loading import open_tensors
from tests.chatterbox_release import TURBO, turbo_prompt_of, turbo_rows_of
from tests.engine.harness import Engine
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine
# Prompts in chunks, memory for little more than two of six replies.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 6, "num_gpu_blocks_override": 9}
ARRIVALS = {"r2": 3, "r3": 4, "r4": 9, "r5": 9}
REPLIES: list[dict[str, Any]] = TURBO["replies"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_turbo(tmp_path_factory.mktemp("turbo"))


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(checkpoint, max_model_len=256, async_scheduling=request.param) as running:
        yield running


def prompts(checkpoint: Path) -> dict[str, Prompt]:
    template, family = open_turbo(checkpoint), family_at(checkpoint)
    return {f"r{at}": turbo_prompt_of(reply, template, family) for at, reply in enumerate(REPLIES)}


def expected(checkpoint: Path) -> dict[str, list[list[int]]]:
    known = TurboVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    return {f"r{at}": turbo_rows_of(reply, known) for at, reply in enumerate(REPLIES)}


def test_the_fixture_is_no_accident() -> None:
    """Every id leads, and both ends occur."""
    assert min(reply["lead"] for reply in REPLIES) > 5e-4
    assert {reply["codes"][-1] == END_OF_SPEECH for reply in REPLIES} == {True, False}


def test_codes_are_the_authors(checkpoint: Path, engine: Engine) -> None:
    """Batched, then again with prompts from the prefix cache."""
    for arrivals in (ARRIVALS, {}):
        answers = engine.run(prompts(checkpoint), arrivals)
        for name, rows in expected(checkpoint).items():
            assert answers[name].rows == rows, name
    assert engine.is_clean()


def test_the_speaker_as_a_vector_is_the_voice(checkpoint: Path, engine: Engine) -> None:
    known = TurboVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    table = open_tensors(checkpoint)["transformer.wte.weight"].float().numpy()
    named = prompts(checkpoint)["r1"]
    others = {}
    for voice in known.voices:
        row = table[known.speaker(voice)][None]
        others[voice] = replace(named, audios=(InputAudio(0, 1, row),))
    answers = engine.run({"named": named, **others})
    assert answers["anna"].rows == answers["named"].rows != answers["default"].rows


@pytest.mark.nightly
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_replies_go_on_after_a_preemption(checkpoint: Path, is_async: bool) -> None:
    with Engine(checkpoint, max_model_len=128, async_scheduling=is_async, **TIGHT) as running:
        answers = running.run(prompts(checkpoint), ARRIVALS)
        assert running.is_clean()
    for name, rows in expected(checkpoint).items():
        assert answers[name].rows == rows, name
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0
