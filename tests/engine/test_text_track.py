"""Replies with text added to frames equal the reference: batched, chunked, preempted, guided and shared."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stretto.family.base import Family
from stretto.testing.checkpoints import make_prompts
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint
from tests.speech_families import HIDDEN_TRACK, TRACKED

pytestmark = pytest.mark.engine
LENGTH = 160
FAMILIES = {"sync": TRACKED, "async": HIDDEN_TRACK}


def tight_engine(family: Family, folder: Path, is_async: bool) -> Engine:
    """Return an engine with little memory, which chunks prompts and preempts replies."""
    write_checkpoint(folder, family, family.name, hidden=64, layers=2)
    limits = {
        "max_num_batched_tokens": 48,
        "max_num_seqs": 5,
        "max_model_len": LENGTH,
        "num_gpu_blocks_override": 11 if family.guided_streams else 9,
    }
    return Engine(folder, async_scheduling=is_async, **limits)


@pytest.fixture(scope="module", params=list(FAMILIES))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Family]]:
    family = FAMILIES[request.param]
    with tight_engine(family, tmp_path_factory.mktemp("checkpoint"), request.param == "async") as engine:
        yield engine, family


def test_text_track_replies_match_the_reference(both: tuple[Engine, Family]) -> None:
    engine, family = both
    reference = ReferenceModel(Path(engine.core.vllm_config.model_config.model), family, LENGTH)
    given = make_prompts(family, 10)
    answers = engine.run(given)
    for request_id, answer in answers.items():
        rows, lead = reference.reply(given[request_id], guess=answer.rows)
        assert lead > 1e-5
        assert answer.rows == [row[: family.layout.num_output_streams] for row in rows], request_id
    assert sum(answer.trailer.num_preemptions for answer in answers.values()) > 0
    if family.guided_streams:
        assert {given[name].sampling.guidance_scale for name in answers} == {1.0, 2.0, 3.0}


def test_text_track_affects_the_reply_and_block_hashes(both: tuple[Engine, Family]) -> None:
    """Replies differ after the first differing row, and block hashes include the text."""
    engine, family = both
    first = make_prompts(family, 10)["r7"]
    other = replace(first, track=(*first.track[:2], 20 + first.track[2] % 3, *first.track[3:]))
    answers = engine.run({"first": first, "other": other, "again": first}, arrivals={"again": 60})
    rows = {name: answer.rows for name, answer in answers.items()}
    assert rows["again"] == rows["first"]
    assert rows["other"][: 3 if family.guided_streams else 2] == rows["first"][: 3 if family.guided_streams else 2]
    assert rows["other"] != rows["first"]
