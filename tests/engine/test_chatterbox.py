"""Chatterbox's T3 in the engine: codes are those of its authors' own loop, guided, penalized, greedy and drawn."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkpoints.random_chatterbox import convert
from stretto.families.chatterbox.family import END_OF_SPEECH, ChatterboxVocabulary
from stretto.families.chatterbox.prompt import open_chatterbox
from stretto.families.plugin import VOCABULARY, config_at, family_at
from stretto.records.prompt import InputAudio, Prompt
from stretto.weights.loading import open_tensors
from tests.chatterbox_release import REPLIES, prompt_of, rows_of, write
from tests.engine.harness import Engine
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine
# Prompts in chunks, memory for little more than one of six CFG pairs: pairs are preempted together.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 6, "num_gpu_blocks_override": 9}
TABLE = "model.embed_tokens.weight"
ARRIVALS = {"r2": 3, "r3": 4, "r4": 9, "r5": 9}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("chatterbox"))


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(checkpoint, max_model_len=256, async_scheduling=request.param) as running:
        yield running


def prompts(checkpoint: Path) -> dict[str, Prompt]:
    template, family = open_chatterbox(checkpoint), family_at(checkpoint)
    return {f"r{at}": prompt_of(reply, template, family) for at, reply in enumerate(REPLIES)}


def expected(checkpoint: Path) -> dict[str, list[list[int]]]:
    known = ChatterboxVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    return {f"r{at}": rows_of(reply, known) for at, reply in enumerate(REPLIES)}


def test_the_fixture_is_no_accident() -> None:
    """Every id leads; both ends are there; and so are ids that are no codes, which no mask of the authors' hides."""
    assert min(reply["lead"] for reply in REPLIES) > 2e-3
    assert {reply["codes"][-1] == END_OF_SPEECH for reply in REPLIES} == {True, False}
    assert any(code > END_OF_SPEECH for reply in REPLIES for code in reply["codes"])


def test_codes_are_the_authors(checkpoint: Path, engine: Engine) -> None:
    """Batched, then again with both prompts of each CFG pair from the prefix cache; no row is unguided."""
    wanted = expected(checkpoint)
    for arrivals in (ARRIVALS, {}):
        answers = engine.run(prompts(checkpoint), arrivals)
        for name, rows in wanted.items():
            assert answers[name].rows == rows, name
            assert answers[name].trailer is not None
            assert answers[name].trailer.num_guided_frames == len(rows) - 1
    assert engine.is_clean()


def test_the_other_half_reads_positions_and_no_words(checkpoint: Path, engine: Engine) -> None:
    """Texts of equal length have the same unconditional request, whose blocks they share.

    A longer text has another, which is compared with the authors' above.
    """
    template, family, first = open_chatterbox(checkpoint), family_at(checkpoint), prompts(checkpoint)["r0"]
    other = replace(first, rows=write(template, family, "hollo the answer"))
    rows = first.rows[:, 0] != other.rows[:, 0]
    assert rows.any()
    assert (first.rows[:, 1] == other.rows[:, 1]).all()
    answers = engine.run({"first": first, "other": other, "again": first}, {"other": 70, "again": 140})
    assert answers["other"].rows != answers["first"].rows
    assert answers["again"].rows == answers["first"].rows


@pytest.mark.nightly
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_pairs_go_on_behind_a_preemption(checkpoint: Path, is_async: bool) -> None:
    with Engine(checkpoint, max_model_len=128, async_scheduling=is_async, **TIGHT) as running:
        answers = running.run(prompts(checkpoint), ARRIVALS)
        assert running.is_clean()
    for name, rows in expected(checkpoint).items():
        assert answers[name].rows == rows, name
        assert answers[name].trailer.num_guided_frames == len(rows) - 1
    assert sum(answer.trailer.num_preemptions for answer in answers.values()) > 0


def test_rows_as_vectors_are_the_voice(checkpoint: Path, engine: Engine) -> None:
    """The conditional and the unconditional request both read them; requests of other vectors share no blocks."""
    config = config_at(checkpoint)
    known, table = ChatterboxVocabulary.from_record(config[VOCABULARY]), open_tensors(checkpoint)[TABLE].float().numpy()
    template, family = open_chatterbox(checkpoint), family_at(checkpoint)
    text, size = "hello the answer", known.num_voice_rows
    named = {
        name: replace(prompts(checkpoint)["r0"], rows=write(template, family, text, name)) for name in known.voices
    }
    recorded, changed = dict[str, Prompt](), dict[str, Prompt]()
    for name in known.voices:
        rows = table[list(known.voice(name))]
        recorded[f"recorded {name}"] = replace(named["default"], audios=(InputAudio(0, size, rows),))
        last = InputAudio(size - 1, 1, rows[-1:])
        changed[f"changed {name}"] = replace(named[name], audios=(last,))
    answers = engine.run(named | recorded | changed)
    for name in known.voices:
        assert answers[f"recorded {name}"].rows == answers[f"changed {name}"].rows == answers[name].rows
    assert answers["default"].rows != answers["anna"].rows
    assert engine.is_clean()
