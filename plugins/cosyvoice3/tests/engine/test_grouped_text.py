"""Text in rows of its own: limits, samplers, and replies to whole and to streamed texts."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from plugins.cosyvoice3.tests.small_families import GROUPED
from stretto.engine.prompt_checks import check_prompt, known_ids
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import Engine
from tests.engine.test_open_texts import (  # noqa: F401 (tests, for the engine below)
    at_once,
    streaming_engine,
    test_engine_is_idle_while_all_replies_wait_for_text,
    test_stalled_text_streams_do_not_block_other_requests,
    test_streamed_text_reply_is_independent_of_pacing,
)
from tests.engine.test_prompt_checks import ROOMY, refusal
from tests.engine.test_text_track import (  # noqa: F401 (tests, for the engine below)
    test_text_track_affects_the_reply_and_block_hashes,
    test_text_track_replies_match_the_reference,
    tight_engine,
)
from tests.engine.worker.walks import assert_samplers_agree
from tests.random_checkpoints import write_checkpoint
from tests.tiers import ASYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Family]]:
    with tight_engine(GROUPED, tmp_path_factory.mktemp("checkpoint"), request.param) as engine:
        yield engine, GROUPED


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), GROUPED, GROUPED.name, hidden=64, layers=2)
    with streaming_engine(folder, request.param) as engine:
        yield engine


@pytest.mark.parametrize("is_whole", [False, *by_night(True)], ids=["until others follow", "whole"])
def test_kernels_match_the_reference_sampler(is_whole: bool) -> None:
    assert_samplers_agree(GROUPED, is_whole)


def test_text_in_separate_rows_is_limited_by_its_groups() -> None:
    """In 40 rows, 13 words fit: six groups of two words and four frames, then a word, the end and a frame."""
    rules = SegmentRules(GROUPED, 112)
    made = make_prompt(GROUPED, 0)
    audio = replace(made.sampling.audio, min_rows=0, max_rows=40)
    prompt = replace(made, sampling=replace(made.sampling, audio=audio))
    code = GROUPED.layout.audio[0].start
    assert check_prompt(replace(prompt, track=(5,) * 13 + (7,)), rules, ROOMY)
    assert check_prompt(replace(prompt, track=(code,) * 6 + (5,) * 11 + (7,)), rules, ROOMY)
    for track, said in (
        ((5,) * 14 + (7,), "text: expected at most 14 tokens after the prompt, got 15 tokens"),
        ((code,) * 6 + (5,) * 12 + (7,), "text: expected at most 12 tokens after the prompt, got 13 tokens"),
        ((code,) * 110, "track: expected at most 105 ids, including codes of a recording, got 110"),
    ):
        assert said in str(refusal(replace(prompt, track=track), rules))
    assert "expected at most 13 tokens" in str(refusal(replace(prompt, track=(5,) * 14, is_open=True), rules))
    with pytest.raises(InvalidRequest, match="text: expected token ids of text"):
        known_ids([5, code], rules)
