"""Kyutai STT in the engine: the text of every row equals that of the authors' code, past its window."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.families.base import Family
from stretto.families.kyutai_stt import PLUGIN
from stretto.families.kyutai_stt.family import SttVocabulary
from stretto.families.kyutai_stt.prompt import initial_row, track_of
from stretto.families.registry import VOCABULARY, config_at, family_at
from stretto.records.prompt import Prompt
from stretto.testing import assert_family_conforms
from tests.engine.harness import Engine
from tests.kyutai_release import make_checkpoint, replies
from tests.small_vocabularies import SMALL_STT

pytestmark = pytest.mark.engine
ROOMY: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("kyutai"))


@pytest.fixture(scope="module")
def family(checkpoint: Path) -> Family:
    return family_at(checkpoint)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine(checkpoint, **ROOMY) as engine:
        yield engine


def make_prompt(checkpoint: Path, codes: np.ndarray, **limits: int) -> Prompt:
    known = SttVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    sampling = family_at(checkpoint).tasks[0].sampling
    sampling = replace(sampling, text=replace(sampling.text, **limits), seed=0)
    return Prompt("asr", initial_row(known), sampling, track=track_of(codes, known))


def text_of(rows: list[list[int]]) -> list[int]:
    return [row[0] for row in rows]


def test_text_of_every_row_is_the_authors(engine: Engine, checkpoint: Path, family: Family) -> None:
    """The window is 20 rows of 91."""
    found = replies()
    answer = engine.run({"r": make_prompt(checkpoint, found["codes"])})["r"]
    assert text_of(answer.rows) == [*found["text"].tolist(), family.end_of_reply]
    assert answer.trailer is not None
    assert not answer.trailer.was_cut


def test_recordings_of_other_lengths_do_not_change_each_other(engine: Engine, checkpoint: Path) -> None:
    codes, text = replies()["codes"], replies()["text"].tolist()
    lengths = (1, 30, 90, 47)
    prompts = {f"r{length}": make_prompt(checkpoint, codes[:, :length]) for length in lengths}
    answers = engine.run(prompts, {"r30": 3, "r47": 20})
    for length in lengths:
        assert text_of(answers[f"r{length}"].rows)[:-1] == text[: length + 1]
    assert engine.is_clean()


def test_a_limit_of_rows_is_a_cut(engine: Engine, checkpoint: Path, family: Family) -> None:
    answer = engine.run({"r": make_prompt(checkpoint, replies()["codes"], max_rows=40)})["r"]
    assert text_of(answer.rows) == [*replies()["text"].tolist()[:40], family.end_of_reply]
    assert answer.trailer is not None
    assert answer.trailer.was_cut


def test_preempted_replies_read_the_recording_again(checkpoint: Path) -> None:
    codes, text = replies()["codes"], replies()["text"].tolist()
    prompts = {f"r{at}": make_prompt(checkpoint, codes) for at in range(4)}
    with Engine(checkpoint, **ROOMY, num_gpu_blocks_override=6, max_num_batched_tokens=16) as engine:
        answers = engine.run(prompts, {"r1": 5, "r2": 9, "r3": 30})
    assert all(text_of(answer.rows)[:-1] == text for answer in answers.values())
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0


def test_the_family_conforms(tmp_path: Path) -> None:
    assert_family_conforms(PLUGIN, tmp_path, SMALL_STT.to_record(), backbone="llama")
