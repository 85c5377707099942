"""The request table: state of every request, and the unconditional request of a guided one."""

import numpy as np
import pytest

from stretto.engine.scheduling.request_state import NOT_YET, RequestState
from tests.engine.scheduling.tables import BURSTS, FAMILY, arrive, pair, speak, table


def test_only_guided_speech_requests_have_a_cfg_pair() -> None:
    known = table()
    arrive(known, "guided")
    arrive(known, "unguided", guidance_scale=1.0)
    arrive(known, "listens", task="listen")
    assert known["guided"].pair is not None
    assert known["unguided"].pair is known["listens"].pair is None
    assert known.partner("guided") is None, "its other half is still to come"
    assert known.partner("stranger") is None


def test_cfg_requests_are_partners_until_one_is_dropped() -> None:
    known = table()
    _, half = pair(known, "r")
    assert half.request_id == "r#unconditional"
    assert known.partner("r") == half.request_id
    assert known.partner(half.request_id) == "r"
    assert known.with_partners(["r", "x"]) == {"r", "x", "r#unconditional"}
    assert known.is_bound("r")
    assert known.drop_unconditional(known["r"]) == "r#unconditional"
    assert list(known) == ["r"]
    assert known.partner("r") is None
    assert not known.is_bound("r")
    assert known["r"].pair.first_output == NOT_YET


def test_unconditional_prompt_has_null_ids_and_unchanged_audio() -> None:
    known = table()
    arrive(known, "r")
    speak(known["r"], 3)
    half = known[known.add_unconditional(known["r"]).request_id]
    rows = np.array(half.request.prompt_token_ids)
    assert rows[:7].tolist() == [FAMILY.unconditional.null_id] * 7
    assert rows[7:].tolist() == known["r"].request.all_token_ids[7:]
    assert half.history.num_rows == half.request.num_prompt_tokens == 8 + 3
    assert known["r"].pair.first_output == 3
    assert half.is_unconditional
    assert half.reply is known["r"].reply
    assert half.request.max_tokens == known["r"].request.max_tokens - 3


def test_text_segment_is_unguided_before_its_cfg_pair_is_complete() -> None:
    known = table()
    arrive(known, "r", task="chat")
    assert not known.is_bound("r")
    assert not known.guidance_has_begun(known["r"])


def test_block_hashes_cover_all_streams_of_both_cfg_requests() -> None:
    known = table()
    one, half = pair(known, "one")
    assert len(one.block_hashes) == len(half.block_hashes) == 2
    assert half.block_hashes[0] != one.block_hashes[0]
    _, other_half = pair(known, "other")
    assert other_half.block_hashes == half.block_hashes, "what is hidden is the same for all prompts of a length"


def test_every_cfg_pair_change_updates_the_revision() -> None:
    known = table()
    arrive(known, "r")
    state, seen = known["r"], [known.revision]
    for change in (known.add_unconditional, known.drop_unconditional, known.await_unconditional, known.stop_awaiting):
        change(state)
        seen.append(known.revision)
    assert len(set(seen)) == len(seen)


def test_cfg_pair_waits_for_its_unconditional_request() -> None:
    known = table()
    arrive(known, "r")
    known.await_unconditional(known["r"])
    assert known["r"].pair.awaits_unconditional
    known.add_unconditional(known["r"])
    assert not known["r"].pair.awaits_unconditional


def test_timed_guidance_gets_a_row_limit_once_it_begins() -> None:
    known = table()
    arrive(known, "r", policy="until_s", guided_until_s=0.4)
    assert known["r"].limit == NOT_YET
    known.add_unconditional(known["r"])
    assert known["r"].limit == 5


def test_dropping_a_missing_unconditional_request_raises() -> None:
    known = table()
    arrive(known, "r")
    with pytest.raises(AssertionError, match="r has no unconditional request"):
        known.drop_unconditional(known["r"])


def test_ended_guidance_drops_the_unconditional_request() -> None:
    known = table()
    request, _ = pair(known, "r", policy="until_s", guided_until_s=0.4)
    state = known["r"]
    speak(state, 4)
    assert state.next_output < state.limit
    speak(state)
    assert known.drop_unconditional(state) == "r#unconditional"
    assert state.pair is None
    assert known.with_partners([request.request_id]) == {"r"}


def test_table_followers_are_notified_of_added_and_removed_requests() -> None:
    known, told = table(), list[tuple[str, str]]()

    class Follower:
        def add(self, state: RequestState) -> None:
            told.append(("come", state.request.request_id))

        def remove(self, request_id: str) -> None:
            told.append(("gone", request_id))

    known.followers = (Follower(),)
    pair(known, "r")
    arrive(known, "x")
    known.drop_unconditional(known["r"])
    known.remove("r", "stranger")
    assert told == [("come", "r"), ("come", "x"), ("gone", "r#unconditional"), ("gone", "r"), ("gone", "stranger")]
    assert list(known) == ["x"]


def test_multi_token_steps_stay_within_the_model_length() -> None:
    schedule, length = BURSTS.family.mechanism.steps.schedule("turbo"), BURSTS.max_model_len
    assert BURSTS.num_extra(schedule, 60, 60) > 1
    last_rows = [first + BURSTS.num_extra(schedule, first, first) for first in range(60, length)]
    assert max(last_rows) == length - 1
