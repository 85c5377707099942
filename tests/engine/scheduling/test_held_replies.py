"""Replies blocked on streamed text: blocking, preemption, and text updates for the worker."""

from dataclasses import replace

import numpy as np
import pytest
from vllm.v1.core.sched.output import CachedRequestData
from vllm.v1.request import Request

from stretto.engine.reply_rules import SegmentRules, TextUpdate
from stretto.engine.scheduling.held_replies import HeldReplies
from stretto.engine.scheduling.planner import PairPlanner
from stretto.engine.step_records import NewText, SpeechCachedRequests
from stretto.engine.tracks import ENDLESS, rows_of
from stretto.testing.checkpoints import make_prompt
from stretto.testing.conformance import sampling_params
from tests.engine.harness import update_request
from tests.engine.scheduling.tables import BLOCK, FakeBlocks, run, table
from tests.speech_families import TRACKED

RULES = SegmentRules(TRACKED, 160)
NOTHING = CachedRequestData.make_empty()


class World:
    """A request table with open texts, and a clock that the test sets."""

    def __init__(self) -> None:
        self.now, self.table, self.blocks = 0.0, table(RULES), FakeBlocks()
        self.planner = PairPlanner(self.table, self.blocks)
        self.texts = HeldReplies(self.table, self.planner, self.blocks, lambda: self.now)

    def arrive(self, name: str, *ids: int, is_open: bool = True) -> Request:
        """Add a running reply to a prompt of five rows that has generated one word and waits for text id 0."""
        made = replace(make_prompt(TRACKED, 0, guidance_scale=1.0), track=ids, is_open=is_open)
        hashes = lambda request: [b"hash"] * (request.num_tokens // BLOCK - len(request.block_hashes))  # noqa: E731
        params = sampling_params(made, RULES)
        request = Request(name, made.rows[:, 0].tolist(), params, None, block_hasher=hashes)
        self.texts.add(self.table.add(request))
        return run(request)[0]

    def say(self, request: Request, num_rows: int = 1) -> None:
        for _ in range(num_rows):
            self.table[request.request_id].history.put(request.num_tokens, [[0] * 8])
            request.append_output_token_ids(TRACKED.layout.audio[0].start)
            self.texts.note_generated(self.table[request.request_id])

    def write(self, name: str, *ids: int, is_last: bool = False) -> bool:
        return self.texts.absorb_updates(update_request(TextUpdate(name, np.array(ids, np.int32), is_last)))


@pytest.fixture
def world() -> World:
    return World()


def test_reply_blocks_after_its_last_word_until_more_text_arrives(world: World) -> None:
    request = world.arrive("r", 20)
    world.say(request)
    assert not world.texts.is_held(request), "word 0 is there"
    world.say(request)
    assert world.texts.held([request]) == [request]
    assert world.texts.all_held
    world.now = 3.0
    assert world.write("r")
    assert world.texts.is_held(request), "nothing has come"
    assert world.write("r", 21, 22)
    assert not world.texts.is_held(request)
    assert (world.texts.held_s, world.table["r"].held_s, world.texts.num_held) == (3.0, 3.0, 0)


def test_text_end_unblocks_all_rows(world: World) -> None:
    request = world.arrive("r")
    world.say(request)
    revision = world.table.revision
    world.write("r", 7, is_last=True)
    world.say(request, 9)
    assert not world.texts.is_held(request)
    assert world.table["r"].track.num_known(world.table["r"].reply) == ENDLESS
    assert world.table.revision > revision
    assert world.write("r", 20), "words behind the end are nobody's, and no request"
    assert world.table["r"].track.ids == [7]


def test_worker_receives_new_text_once_and_min_rows_at_the_end(world: World) -> None:
    world.arrive("r", 20)
    assert world.texts.attach_news(NOTHING, {}) is NOTHING
    world.write("r", 21)
    world.write("r", 22, 23)
    told = world.texts.attach_news(NOTHING, {})
    assert isinstance(told, SpeechCachedRequests)
    assert repr(told.new_text) == repr({"r": NewText(rows_of([6, 21, 7, 22, 8, 23], 2), {})})
    world.write("r", 7, is_last=True)
    told = world.texts.attach_news(NOTHING, {"s": 40})
    assert isinstance(told, SpeechCachedRequests)
    assert repr(told.new_text) == repr({"r": NewText(rows_of([9, 7], 2), {"audio_min": 5})})
    assert told.audio_starts == {"s": 40}
    assert world.texts.attach_news(NOTHING, {}) is NOTHING


def test_block_is_hashed_once_its_text_tokens_are_known(world: World) -> None:
    request = world.arrive("r", 20, 21)
    hashed = world.table["r"].request._block_hasher
    world.say(request, 3)
    assert request.num_tokens == 8
    assert hashed(request) == []
    assert len(request.block_hashes) == 1
    world.write("r", 22)
    assert len(request.block_hashes) == 2


def test_blocked_requests_are_preempted_for_runnable_ones(world: World) -> None:
    older, younger, other = world.arrive("a"), world.arrive("b"), world.arrive("c", is_open=False)
    world.say(older)
    world.say(younger)
    running = [older, younger]
    assert world.texts.to_preempt([other], running, num_slots=3) == []
    assert world.texts.to_preempt([other], running, num_slots=2) == [younger]
    world.blocks.free = 1
    assert world.texts.to_preempt([other], running, num_slots=3) == [younger]
    assert world.texts.to_preempt([younger], [older], num_slots=1) == [], "it waits for words, not for room"
    assert not world.texts.all_held


def test_blocked_reply_gets_no_tokens_and_is_preempted_first(world: World) -> None:
    held, other = world.arrive("a"), world.arrive("b", is_open=False)
    world.say(held)
    held.num_computed_tokens += 1
    plan = world.planner.plan([held, other], budget=10)
    assert plan.grants == {"a": 0, "b": 1}
    world.blocks.free = 0
    other.num_computed_tokens = other.num_tokens - 1
    assert world.planner.plan([held, other], budget=10).to_preempt == [held]
    younger = world.arrive("c")
    world.say(younger)
    assert world.planner.plan([held, younger, other], budget=10).to_preempt == [younger]
    assert world.planner.stuck([held]) == []


def test_finished_reply_leaves_no_blocked_text_state(world: World) -> None:
    request = world.arrive("r")
    world.say(request)
    world.write("r")
    world.texts.remove("r")
    world.table.remove("r")
    assert (world.texts.num_held, world.texts.all_held, world.texts.attach_news(NOTHING, {})) == (0, False, NOTHING)
    assert world.write("r", 20)
    assert world.texts.attach_news(NOTHING, {}) is NOTHING
