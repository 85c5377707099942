"""Batching of outgoing rows: rows that are not urgent are sent together and in order."""

import random
from unittest.mock import MagicMock

import numpy as np
import pytest
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from stretto.engine.protocol import GUIDANCE_OFF, NO_CHANGE
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.scheduling.outgoing_rows import LEAST_LEAD_S, MAX_WAIT_S, OutgoingRows
from stretto.engine.scheduling.sampled_rows import SampledRows
from stretto.engine.scheduling.scheduler import PairedScheduling
from stretto.engine.tracks import Track, rows_of
from stretto.streams.chunking import ChunkPolicy, DecoderLoad, DecodingTime, Pacer
from tests.engine.scheduling.tables import BURSTS, RULES, arrive, table
from tests.reply_rows import push
from tests.speech_families import EIGHT_STREAMS as FAMILY

FRAME_S = 1 / FAMILY.frame_rate
FIRST_FRAMES = int(LEAST_LEAD_S / FRAME_S)
FIRST = FAMILY.layout.audio[0].start
WIDTH = 1 + RULES.num_row_words  # words of a row in the engine's output


class Reply:
    """Reply with rows of a single number, generated `step_s` apart."""

    def __init__(self, step_s: float, task: str = "speak", rules: SegmentRules = RULES) -> None:
        self.now = 1000.0
        self._step_s = step_s
        self._reply = ReplyState.begin(rules, rules.family.task(task), 8)
        self._outgoing = OutgoingRows(self._reply, lambda: self.now)
        self._num_rows = 0
        self.left: list[tuple[float, list[int]]] = []
        self.made_s: list[float] = []

    def make(self, num_rows: int, token_id: int = FIRST + 1, is_last: bool = False) -> None:
        for _ in range(num_rows):
            self.now += self._step_s
            push(self._reply, token_id)
            self.made_s.append(self.now)
            if rows := self._outgoing.push([self._num_rows], is_last):
                self.left.append((self.now, rows))
            self._num_rows += 1

    @property
    def sizes(self) -> list[int]:
        return [len(rows) for _, rows in self.left]


def test_real_time_audio_is_sent_row_by_row() -> None:
    reply = Reply(step_s=FRAME_S)
    reply.make(100)
    assert reply.sizes == [1] * 100


def test_rows_ahead_of_playback_are_batched_in_order() -> None:
    reply = Reply(step_s=FRAME_S / 5)
    reply.make(99)
    reply.make(1, is_last=True)
    assert [row for _, rows in reply.left for row in rows] == list(range(100))
    assert len(reply.left) < 50
    assert reply.sizes[:FIRST_FRAMES] == [1] * FIRST_FRAMES, "the first are waited for"


@pytest.mark.parametrize("speed", [1.5, 2.5, 7.0, 100.0])
def test_rows_wait_at_most_a_quarter_of_their_lead_time(speed: float) -> None:
    reply = Reply(step_s=FRAME_S / speed)
    reply.make(150)
    for left_s, rows in reply.left:
        for row in rows:
            lead_s = (row + 1) * FRAME_S - (reply.made_s[row] - reply.made_s[0])
            waited_s = left_s - reply.made_s[row]
            assert waited_s <= min(MAX_WAIT_S, lead_s / 4) + 1e-9


def test_late_rows_are_sent_immediately() -> None:
    reply = Reply(step_s=FRAME_S / 5)
    reply.make(60)
    reply.now += 60.0
    reply.make(3)
    assert reply.sizes[-2:] == [1, 1], "the lead is gone"


def test_first_text_row_is_sent_immediately_and_later_ones_grouped() -> None:
    reply = Reply(step_s=0.01, task="listen")
    reply.make(100, token_id=16)
    assert reply.sizes[0] == 1
    assert max(reply.sizes) <= 1 + MAX_WAIT_S / 0.01
    assert len(reply.left) < 12


def test_reply_text_is_sent_in_few_chunks_and_with_the_first_audio() -> None:
    reply = Reply(step_s=0.01, task="chat")
    reply.make(100, token_id=16)
    assert len(reply.left) <= 5
    reply.make(1, FAMILY.end_of_text)
    reply.make(3)
    assert [row for _, rows in reply.left for row in rows] == list(range(104)), "nothing is left behind"


def test_audio_of_unknown_frame_rate_is_sent_row_by_row() -> None:
    reply = Reply(step_s=0.001)
    reply._outgoing._frame_rate = 0.0
    reply.make(50)
    assert reply.sizes == [1] * 50


class Listener:
    """Player of the rows that a pacer releases, with random step and decode times; it measures underruns."""

    def __init__(self, seed: int, speed: float, holds: bool) -> None:
        self._random, self._speed = random.Random(seed), speed
        self.now = self._latency_s = self._slow_until = self.begins_s = self.silence_s = 0.0
        self._dry_s: float | None = None
        self._reply = ReplyState.begin(RULES, FAMILY.task("speak"), 8)
        self._outgoing = OutgoingRows(self._reply, lambda: self.now)
        self._pacer = Pacer(ChunkPolicy(4, 25, frame_rate=FAMILY.frame_rate), self._load, lambda: self.now)
        self._holds = holds

    def _load(self) -> DecoderLoad:
        return DecoderLoad(self._latency_s, DecodingTime(0.1))

    def listen(self, num_rows: int = 80) -> tuple[float, float]:
        """Return the time of the first audio and the duration of silence after it."""
        num_ready = 0
        for row in range(num_rows):
            if self._random.random() < 0.01:
                self._slow_until = self.now + self._random.uniform(0.4, 1.6)
            is_slow = self.now < self._slow_until
            self.now += FRAME_S / self._speed * self._random.lognormvariate(0.0, 0.3) * (3 if is_slow else 1)
            delay_s = self._random.uniform(0.1, 0.5)
            push(self._reply, FIRST + 1)
            num_ready += len(self._outgoing.push([row], row == num_rows - 1)) if self._holds else 1
            while size := self._pacer.num_to_send(num_ready):
                num_ready -= size
                self._hear(size, delay_s)
        return self.begins_s, self.silence_s

    def _hear(self, num_frames: int, delay_s: float) -> None:
        self._latency_s, comes_s = delay_s, self.now + delay_s
        if self._dry_s is None:
            self.begins_s = comes_s
        else:
            self.silence_s += max(0.0, comes_s - self._dry_s)
        self._dry_s = max(comes_s, self._dry_s or 0.0) + num_frames * FRAME_S


@pytest.mark.parametrize("speed", [1.25, 2.5, 5.0])
def test_delaying_rows_adds_no_latency_or_silence(speed: float) -> None:
    heard = [[Listener(seed, speed, holds).listen() for seed in range(300)] for holds in (False, True)]
    (begins_s, silence_s), (begins_late_s, more_silence_s) = (np.mean(each, axis=0) for each in heard)
    assert begins_late_s <= begins_s + 0.001
    assert more_silence_s <= 1.05 * silence_s + 0.005


def sampled(request_id: str, cut: bool = False) -> ModelRunnerOutput:
    """Return the output of a step in which one request, whose audio began in row 8, has sampled codes 1 … 7."""
    rows = np.array([[*range(1, 8), 8, -1, 0]])
    logprobs = LogprobsLists(rows, np.zeros((1, 1)), np.array([int(cut)]))
    return ModelRunnerOutput([request_id], {request_id: 0}, [[FIRST + 1]], logprobs, {}, [])


def test_outgoing_row_has_guidance_mark_token_codes_and_state() -> None:
    known, rows = table(), SampledRows(RULES)
    arrive(known, "r")
    output = sampled("r", cut=True)
    rows.extract(output)
    assert output.logprobs is None, "vLLM would send them"
    assert rows.push(known["r"], [NO_CHANGE], [9], is_last=True) == [NO_CHANGE, 9, *range(1, 8), 8, -1, 0]
    assert known["r"].was_cut


@pytest.mark.parametrize(("cut_in", "was_cut"), [(0, True), (1, True), (2, False)])
def test_multi_token_rows_after_the_end_are_dropped_with_their_cuts(cut_in: int, was_cut: bool) -> None:
    known, rows = table(), SampledRows(BURSTS)
    arrive(known, "r")
    logprobs = LogprobsLists(np.arange(50)[None], np.zeros((1, 1)), np.array([1 << cut_in]))
    rows.extract(ModelRunnerOutput(["r"], {"r": 0}, [[8, 9, 10]], logprobs, {}, []))
    assert rows.codes == {"r": [[*range(7)], [*range(10, 17)], [*range(20, 27)]]}
    assert rows.state["r"][:3] == [[*range(7, 10)], [*range(17, 20)], [*range(27, 30)]]
    ids = rows.push(known["r"], [NO_CHANGE, GUIDANCE_OFF], [8, 9], is_last=True)
    assert ids == [NO_CHANGE, 8, *range(10), GUIDANCE_OFF, 9, *range(10, 20)]
    assert known["r"].was_cut is was_cut


def test_only_the_codes_sampled_by_a_step_are_extracted() -> None:
    rows = SampledRows(BURSTS)
    logprobs = LogprobsLists(np.arange(100).reshape(2, 50), np.zeros((2, 1)), np.zeros(2, np.int64))
    rows.extract(ModelRunnerOutput(["r", "s"], {"r": 0, "s": 1}, [[8], []], logprobs, {}, []))
    assert rows.codes == {"r": [[*range(7)]], "s": []}


class Stock:
    """Minimal replacement for vLLM's scheduler."""

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        request.status = RequestStatus.PREEMPTED

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        request.append_output_token_ids(new_token_ids)
        return new_token_ids, False


class Scheduling(PairedScheduling, Stock):
    """Scheduler hooks with one unguided reply `r`; the clock is stopped, so that audio rows wait."""

    def __init__(self) -> None:
        self.table, self._sampled = table(), SampledRows(RULES)
        self.texts, self.stats = MagicMock(), MagicMock()
        self.request = arrive(self.table, "r", guidance_scale=1.0)
        self.state = self.table["r"]
        self.state.outgoing = OutgoingRows(self.state.reply, lambda: 0.0)
        self._sampled.extract(sampled("r"))

    def sample(self) -> list[int]:
        """Process one sampled row and return the rows to send now."""
        return self._update_request_with_output(self.request, [FIRST + 1])[0]


def test_pending_rows_of_a_preempted_request_are_sent_next() -> None:
    scheduling, rows = Scheduling(), 0
    for _ in range(60):
        rows += len(scheduling.sample()) // WIDTH
    assert rows < 60
    scheduling.stats.values.live_rows_recomputed_total = 0
    scheduling._preempt_request(scheduling.request, 0.0)
    assert scheduling.stats.values.live_rows_recomputed_total == 0, "the session is not live"
    outputs: dict[int, EngineCoreOutputs] = {}
    scheduling._sampled.send_preempted(outputs)
    (output,) = outputs[scheduling.request.client_index].outputs
    assert output.request_id == "r"
    assert output.finish_reason is None
    assert len(output.new_token_ids) == WIDTH * (60 - rows)
    assert not scheduling.state.outgoing.pop_rows()
    assert not scheduling.sample(), "once it runs again, its rows wait as before"
    scheduling._sampled.send_preempted(outputs)
    assert len(outputs[scheduling.request.client_index].outputs) == 1, "sent once"


def test_rows_are_flushed_before_blocking_on_text() -> None:
    scheduling, sent = Scheduling(), []
    scheduling.state.track = Track(slice(0, 1), 8, rows_of([20] * 30, 1), 0, is_live=True, is_open=True)
    for _ in range(31):
        sent.append(len(scheduling.sample()) // WIDTH)
    assert sum(sent[:-1]) < 30
    assert sum(sent) == 31
