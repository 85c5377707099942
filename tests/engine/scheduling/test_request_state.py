"""Request state as reported to the worker and to the client."""

import numpy as np
import pytest
from vllm.v1.core.sched.output import NewRequestData

from stretto.engine.protocol import GUIDANCE_OFF, GUIDANCE_ON, NO_CHANGE
from stretto.streams.layout import Segment
from tests.engine.scheduling.tables import RULES, arrive, pair, speak, table


def test_guidance_changes_are_noted_at_each_switch() -> None:
    known = table()
    pair(known, "r", policy="adaptive")
    state, marks = known["r"], []
    for is_guided in (True, True, False, False, True):
        speak(state)
        marks.append(state.note_guidance(is_guided))
    assert marks == [NO_CHANGE, NO_CHANGE, GUIDANCE_OFF, NO_CHANGE, GUIDANCE_ON]
    assert state.guidance_switches == [2, 4]
    state.queue_s = 0.5
    assert state.trailer().num_guided_frames == 3


def test_unguided_row_without_a_policy_is_an_error() -> None:
    known = table()
    pair(known, "r")
    speak(known["r"])
    with pytest.raises(AssertionError, match="r: guided False"):
        known["r"].note_guidance(False)


def test_timed_guidance_ends_at_its_last_row() -> None:
    known = table()
    pair(known, "r", policy="until_s", guided_until_s=0.08)
    state = known["r"]
    speak(state)
    assert state.note_guidance(True) == NO_CHANGE
    speak(state)
    assert state.note_guidance(False) == GUIDANCE_OFF
    with pytest.raises(AssertionError, match="r: guided True"):
        state.note_guidance(True)


def test_worker_receives_all_rows_and_queue_time_is_kept() -> None:
    known = table()
    request = arrive(known, "r")
    speak(known["r"], 2)
    request.arrival_time += 3600.0  # the day's clock was set back
    known["r"].added_s -= 2.0
    data = NewRequestData("r", request.prompt_token_ids, [], None, None, ([1],), 0, None)
    told = known["r"].for_worker(data)
    assert told.codes.shape == (10, 7)
    assert np.array_equal(told.codes[:8], known["r"].prompt.codes)
    assert told.prompt is known["r"].prompt
    waited = known["r"].queue_s
    assert waited > 1.5
    known["r"].for_worker(data)
    assert known["r"].queue_s == waited, "of its first step"


def test_unguided_request_trailer_has_no_guided_frames() -> None:
    known = table()
    arrive(known, "r", guidance_scale=1.0)
    state = known["r"]
    speak(state, 3)
    state.queue_s, state.request.num_preemptions = 0.25, 2
    assert state.trailer() == (0, 2, 0, 250_000, 0)
    state.was_cut = True
    assert state.trailer().was_cut


def test_row_that_arrives_twice_counts_once_and_a_preempted_reply_resumes_after_it() -> None:
    known = table()
    request = arrive(known, "r", "chat")
    reply, end = known["r"].reply, known["r"].reply.position
    text, first = [-1, -1, 1], [end + 3, -1, 1]
    for position, values, segment in (
        (end + 1, text, Segment.TEXT),
        (end + 2, first, Segment.TRANSITION),
        (end + 3, first, Segment.AUDIO),
        (end + 9, first, Segment.AUDIO),
        (end + 10, [end + 3, end + 9, 1], Segment.TAIL),
    ):
        for _ in range(2):
            reply.move(position, values)
            assert (reply.position, reply.segment, reply.num_text_tokens) == (position, segment, 1)
        data = NewRequestData("r", request.prompt_token_ids, [], None, None, ([1],), 0, None)
        assert known["r"].for_worker(data).state == values
    assert reply.num_frames == max(0, 6 - RULES.num_closing_rows)
