"""Send window, probes, and the end of an utterance."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stretto.disconnects import STREAM, Disconnects
from stretto.errors import Cancelled, Closing, Overloaded
from stretto.records.chunk import Chunk, Envelope, LMChunk
from stretto.records.sampling import Delivery, OutputForm
from stretto.streams.layout import Segment
from stretto.triton_io.callers import Caller
from stretto.triton_io.chunk_sender import ChunkSender, Responses, ResponseThread, SenderLimits
from stretto.triton_io.flow import DecoderFailed, DecoderRefused, DecoderStalled, FlowSlot, FlowTable, Outcome
from tests.fakes_triton import InferenceResponse, Request, ResponseSender
from tests.patience import PATIENCE_S, until_async
from tests.triton_io.answering import AnsweringSender
from tests.triton_io.sealing import SEAL, NoThread, envelope_in, responses_to

QUICK = SenderLimits(max_chunks=4, max_frames=100, probe_s=0.05, poll_s=0.005, stall_s=PATIENCE_S, check_s=PATIENCE_S)
IMPATIENT = replace(QUICK, stall_s=0.2)


@pytest.fixture
def slot(tmp_path: Path) -> FlowSlot:
    return FlowTable.create(1, 4, tmp_path).claim()


class Speaker:
    """Yields chunks of `frames` frames, `pause_s` apart, and records whether it was closed."""

    def __init__(self, num_chunks: int, frames: int = 1, pause_s: float = 0.0) -> None:
        self.num_chunks, self.frames, self.pause_s = num_chunks, frames, pause_s
        self.num_made = 0
        self.is_closed = False

    async def speak(self) -> AsyncGenerator[LMChunk, None]:
        try:
            for index in range(self.num_chunks):
                await asyncio.sleep(self.pause_s)
                codes = np.full((2, self.frames), index, np.int32) if self.frames else None
                self.num_made += 1
                yield LMChunk(Chunk(index, Segment.AUDIO), codes)
        finally:
            self.is_closed = True


def envelopes(sender: ResponseSender) -> list[Envelope]:
    return [envelope_in(each) for each in sender.responses]


def sent(sender: ResponseSender) -> list[int]:
    return [each.chunk.index for each in envelopes(sender) if each.chunk is not None]


def answer(slot: FlowSlot, count: int) -> None:
    for _ in range(count):
        slot.count_answer()


class BlockedSender(ResponseSender):
    """Sender that blocks until it may send."""

    def __init__(self, may_send: threading.Event) -> None:
        super().__init__()
        self._may_send = may_send
        self.is_asked = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        self.is_asked = True
        assert self._may_send.wait(PATIENCE_S), "never let to send"
        super().send(response, flags)


class BrokenSender(ResponseSender):
    """Sender that cannot send."""

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        raise BrokenPipeError("gone")


async def test_chunks_are_sent_in_order_with_their_codes(slot: FlowSlot) -> None:
    sender, speaker = ResponseSender(), Speaker(3, frames=2)
    await ChunkSender(responses_to(sender), slot, "u", QUICK).pump(speaker.speak())
    assert sent(sender) == [0, 1, 2]
    np.testing.assert_array_equal(sender.responses[1].array("codes"), np.full((2, 2), 1))
    assert envelopes(sender)[0].flow == slot.address
    assert speaker.is_closed
    assert not sender.is_final  # the service sends it


def test_probes_are_not_more_than_chunks() -> None:
    """The probes of all replies pass the thread of responses, Triton and the decoder's thread, as chunks do."""
    steady_s = 12 / 12.5  # of a steady chunk of Qwen3-TTS
    assert SenderLimits().probe_s >= steady_s


async def test_output_form_is_sent_once(slot: FlowSlot) -> None:
    sender, form = AnsweringSender(slot.table), OutputForm("pcm_s16le", 8_000)
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", QUICK, Delivery(form))
    await chunk_sender.pump(Speaker(3, pause_s=0.12).speak())
    assert [each.form for each in envelopes(sender) if each.chunk is not None] == [form, None, None]
    assert all(each.form is None for each in envelopes(sender) if each.chunk is None), "a probe may come first"


async def test_chunk_pacing_includes_decoder_and_transit_latency(slot: FlowSlot) -> None:
    slot.table.clock = lambda: 100.0
    slot.note_latency(0.25)
    sender = ChunkSender(responses_to(ResponseSender()), slot, "u", replace(QUICK, transit_s=0.5))
    assert sender.pacer._load() == replace(slot.load, latency_s=0.75)


async def test_text_chunk_carries_no_codes(slot: FlowSlot) -> None:
    sender = ResponseSender()
    await ChunkSender(responses_to(sender), slot, "u", QUICK).pump(Speaker(1, frames=0).speak())
    assert sender.responses[0].array("codes") is None


async def test_chunks_in_flight_are_limited_by_the_window(slot: FlowSlot) -> None:
    sender = ResponseSender()
    pumping = asyncio.create_task(ChunkSender(responses_to(sender), slot, "u", QUICK).pump(Speaker(8).speak()))
    await until_async(lambda: len(sent(sender)) == 4)
    await asyncio.sleep(0.05)
    assert sent(sender) == [0, 1, 2, 3]
    answer(slot, 2)
    await until_async(lambda: len(sent(sender)) == 6)
    answer(slot, 4)
    await pumping
    assert sent(sender) == list(range(8))


async def test_frames_in_flight_are_limited(slot: FlowSlot) -> None:
    sender = ResponseSender()
    pumping = asyncio.create_task(
        ChunkSender(responses_to(sender), slot, "u", QUICK).pump(Speaker(4, frames=60).speak())
    )
    await until_async(lambda: len(sent(sender)) == 2)
    await asyncio.sleep(0.05)
    assert sent(sender) == [0, 1]  # 60 < 100 lets a second chunk go, 120 no third
    answer(slot, 2)
    await pumping
    assert sent(sender) == [0, 1, 2, 3]


async def after_probes(sender: ResponseSender, num_probes: int, pause_s: float = 0.0) -> AsyncGenerator[LMChunk, None]:
    """Yield one chunk, `pause_s` after `num_probes` probes have been sent."""
    await until_async(lambda: len(sender.responses) >= num_probes)
    await asyncio.sleep(pause_s)
    yield LMChunk(Chunk(0, Segment.AUDIO), np.zeros((2, 1), np.int32))


async def test_probes_are_sent_while_the_language_model_is_idle(slot: FlowSlot) -> None:
    sender, begun_s = AnsweringSender(slot.table), time.monotonic()
    await ChunkSender(responses_to(sender), slot, "u", QUICK).pump(after_probes(sender, 3))
    *probes, last = envelopes(sender)
    assert all(each.chunk is None for each in probes)
    assert 3 <= len(probes) <= (time.monotonic() - begun_s) / QUICK.probe_s
    assert last.chunk is not None


async def test_only_one_probe_is_in_flight(slot: FlowSlot) -> None:
    sender = ResponseSender()
    await ChunkSender(responses_to(sender), slot, "u", QUICK).pump(after_probes(sender, 1, pause_s=0.3))
    assert [each.chunk is None for each in envelopes(sender)] == [True, False]


@pytest.mark.parametrize(
    ("speaker", "max_ahead_s"),
    [(Speaker(9, pause_s=3600), 0.0), (Speaker(9), 0.0), (Speaker(1000, frames=25), 0.2)],
    ids=["waits for the model", "waits for answers", "waits for playback"],
)
async def test_cancelled_utterance_stops_at_once(slot: FlowSlot, speaker: Speaker, max_ahead_s: float) -> None:
    limits = replace(QUICK, max_ahead_s=max_ahead_s)
    sender = AnsweringSender(slot.table) if max_ahead_s else ResponseSender()
    pumping = asyncio.create_task(ChunkSender(responses_to(sender), slot, "u", limits).pump(speaker.speak()))
    await asyncio.sleep(0.05)
    slot.conclude(Outcome.CANCELLED)
    with pytest.raises(Cancelled):
        await asyncio.wait_for(pumping, PATIENCE_S)
    assert speaker.is_closed


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome.FAILED, DecoderFailed),
        (Outcome.OVERLOADED, Overloaded),
        (Outcome.CLOSING, Closing),
        (Outcome.REFUSED, DecoderRefused),
    ],
)
async def test_decoder_errors_are_raised(slot: FlowSlot, outcome: Outcome, kind: type[Exception]) -> None:
    chunk_sender = ChunkSender(responses_to(ResponseSender()), slot, "u", QUICK)
    await chunk_sender.pump(Speaker(1).speak())
    slot.conclude(outcome, "no codec")
    answer(slot, 1)
    with pytest.raises(kind, match=r"^no codec$"):
        await chunk_sender.settle()


async def test_language_model_client_disconnect_cancels_generation(slot: FlowSlot) -> None:
    sender, speaker = ResponseSender(), Speaker(9)
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", replace(QUICK, check_s=0.05))
    pumping = asyncio.create_task(chunk_sender.pump(speaker.speak()))
    await until_async(lambda: len(sent(sender)) == 4)
    sender.client_is_gone = True
    with pytest.raises(Cancelled):
        await asyncio.wait_for(pumping, PATIENCE_S)
    assert speaker.is_closed
    with pytest.raises(Cancelled):  # though four chunks are not answered
        await asyncio.wait_for(chunk_sender.settle(), PATIENCE_S)


async def test_disconnects_are_probed_while_chunks_are_unacknowledged(slot: FlowSlot) -> None:
    """A client that stops reading blocks the chunks, and may have disconnected."""
    sender = ResponseSender()
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", replace(QUICK, check_s=0.02))
    await chunk_sender.pump(Speaker(2, frames=60).speak())
    settling = asyncio.ensure_future(chunk_sender.settle())
    await until_async(lambda: len(envelopes(sender)) >= 3)
    assert [each.chunk is None for each in envelopes(sender)[:3]] == [False, False, True]
    slot.conclude(Outcome.CANCELLED)
    await until_async(lambda: answer(slot, 1) or settling.done())
    with pytest.raises(Cancelled):
        settling.result()


@pytest.mark.parametrize("answers", [True, False])
async def test_settling_after_disconnect_waits_only_for_active_decoder(
    slot: FlowSlot, tmp_path: Path, answers: bool
) -> None:
    Disconnects.create(tmp_path / "disconnects")
    disconnects, sender = Disconnects(tmp_path / "disconnects"), ResponseSender()
    number = disconnects.next_number()
    caller = Caller(Request({}, sender, {STREAM: str(number)}), disconnects)
    sending = ChunkSender(Responses(caller, NoThread(), SEAL), slot, "u", replace(QUICK, check_s=0.02, stall_s=600))
    await sending.pump(Speaker(1).speak())
    settling = asyncio.ensure_future(sending.settle())
    disconnects.record(number)
    await until_async(lambda: slot.outcome is Outcome.CANCELLED)
    if answers:  # as the decoder does, which reads it from the slot
        answer(slot, len(envelopes(sender)))
    with pytest.raises(Cancelled):
        await asyncio.wait_for(settling, PATIENCE_S)


async def test_stalled_decoder_is_detected_even_if_it_answers_probes(
    slot: FlowSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count(0.0, 0.005)  # of a clock that stands still while this test's loop does
    monkeypatch.setattr("stretto.triton_io.chunk_sender.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    sender = ResponseSender()
    sending = ChunkSender(responses_to(sender), slot, "u", replace(QUICK, check_s=0.02, stall_s=0.5))

    async def answer_probes() -> None:
        while True:
            answer(slot, sum(each.chunk is None for each in envelopes(sender)) - slot.num_answered)
            await asyncio.sleep(0.005)

    answering = asyncio.ensure_future(answer_probes())
    await sending.pump(Speaker(1).speak())
    with pytest.raises(DecoderStalled):
        await asyncio.wait_for(sending.settle(), PATIENCE_S)
    answering.cancel()
    assert slot.num_answered > 2


async def test_surplus_acknowledgements_are_harmless(slot: FlowSlot) -> None:
    sender = ResponseSender()
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", QUICK)
    answer(slot, 3)
    await chunk_sender.pump(Speaker(2).speak())
    await chunk_sender.settle()
    assert sent(sender) == [0, 1]


async def test_blocking_send_does_not_block_the_event_loop(slot: FlowSlot) -> None:
    may_send, sender = threading.Event(), ResponseSender()
    blocked, thread = BlockedSender(may_send), ResponseThread()
    first = ChunkSender(Responses(Caller(Request({}, blocked)), thread, SEAL), slot, "u", QUICK)
    await asyncio.wait_for(first.pump(Speaker(2).speak()), PATIENCE_S)
    await until_async(lambda: blocked.is_asked)
    await ChunkSender(responses_to(sender), slot.table.claim(), "v", QUICK).pump(Speaker(2).speak())
    assert sent(sender) == [0, 1]
    assert sent(blocked) == []
    may_send.set()
    thread.close()
    assert sent(blocked) == [0, 1]


async def test_unsendable_chunks_end_the_utterance(slot: FlowSlot) -> None:
    thread = ResponseThread()
    chunk_sender = ChunkSender(Responses(Caller(Request({}, BrokenSender())), thread, SEAL), slot, "u", QUICK)
    with pytest.raises(BrokenPipeError, match="gone"):
        await asyncio.wait_for(chunk_sender.pump(Speaker(9, pause_s=0.05).speak()), PATIENCE_S)
    with pytest.raises(BrokenPipeError, match="gone"):  # though nothing will ever be answered
        await asyncio.wait_for(chunk_sender.settle(), PATIENCE_S)


async def test_unresponsive_decoder_ends_the_utterance(slot: FlowSlot) -> None:
    with pytest.raises(DecoderStalled, match="acknowledged no chunk"):
        await ChunkSender(responses_to(ResponseSender()), slot, "u", IMPATIENT).pump(Speaker(9).speak())


class HurriedClock:
    """Replacement for `time` that advances by a second at each call.

    The decoder reports progress if the argument is true, and answers in the end.
    """

    def __init__(self, slot: FlowSlot, tells: bool) -> None:
        self._slot, self._tells, self.now_s = slot, tells, 0.0

    def monotonic(self) -> float:
        self.now_s += 1.0
        if self._tells and self.now_s % 50 == 0:
            self._slot.note_progress()
        if self.now_s == 300:
            self._slot.count_answer()
        return self.now_s


@pytest.mark.parametrize("tells", [True, False])
async def test_settling_waits_as_long_as_the_decoder_reports_progress(
    slot: FlowSlot, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    limits = SenderLimits(stall_s=60, probe_s=1e9, check_s=1e9, poll_s=0.001)
    sender = ChunkSender(responses_to(ResponseSender()), slot, "u", limits)
    await sender.pump(Speaker(1).speak())
    clock = HurriedClock(slot, tells)
    monkeypatch.setattr("stretto.triton_io.chunk_sender.time", clock)
    if tells:
        await asyncio.wait_for(sender.settle(), PATIENCE_S)
    else:
        with pytest.raises(DecoderStalled, match="for 60 s"):
            await asyncio.wait_for(sender.settle(), PATIENCE_S)
    assert (clock.now_s >= 300) == tells


async def test_model_failures_propagate(slot: FlowSlot) -> None:
    async def fail() -> AsyncGenerator[LMChunk, None]:
        yield LMChunk(Chunk(0, Segment.TEXT), None)
        raise RuntimeError("boom")

    sender = ResponseSender()
    with pytest.raises(RuntimeError, match="boom"):
        await ChunkSender(responses_to(sender), slot, "u", QUICK).pump(fail())
    assert sent(sender) == [0]


async def test_utterance_settles_after_chunks_and_probes_are_acknowledged(slot: FlowSlot) -> None:
    sender = ResponseSender()
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", QUICK)
    await chunk_sender.pump(after_probes(sender, 1))
    assert len(sender.responses) == 2
    settling = asyncio.create_task(chunk_sender.settle())
    answer(slot, len(sender.responses) - 1)
    await asyncio.sleep(0.03)
    assert not settling.done()
    answer(slot, 1)
    await settling


async def test_cancelled_utterance_settles_after_all_chunks_are_acknowledged(slot: FlowSlot) -> None:
    chunk_sender = ChunkSender(responses_to(ResponseSender()), slot, "u", QUICK)
    await chunk_sender.pump(Speaker(2).speak())
    slot.conclude(Outcome.CANCELLED)
    settling = asyncio.create_task(chunk_sender.settle())
    await asyncio.sleep(0.03)
    assert not settling.done()
    answer(slot, 2)
    with pytest.raises(Cancelled):
        await settling


async def test_decoder_restart_settles_unacknowledged_chunks(slot: FlowSlot) -> None:
    chunk_sender = ChunkSender(responses_to(ResponseSender()), slot, "u", replace(QUICK, stall_s=60))
    await chunk_sender.pump(Speaker(2).speak())
    settling = asyncio.create_task(chunk_sender.settle())
    await asyncio.sleep(0.03)
    assert not settling.done()
    slot.table.conclude_all(Outcome.CLOSING, "started again")
    with pytest.raises(Closing, match="started again"):  # and not only then when it is taken for stalled
        await asyncio.wait_for(settling, PATIENCE_S)


async def test_audio_is_sent_at_most_max_ahead_s_before_playback(slot: FlowSlot) -> None:
    sender = AnsweringSender(slot.table)
    limits = replace(QUICK, max_ahead_s=0.2)
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", limits)  # 25 frames a second
    speaker = Speaker(6, frames=5)
    await chunk_sender.pump(speaker.speak())
    assert sent(sender) == list(range(6))


async def test_client_is_asked_after_while_audio_waits_for_playback(slot: FlowSlot) -> None:
    sender = AnsweringSender(slot.table)
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", replace(QUICK, max_ahead_s=0.2))
    pumping = asyncio.create_task(chunk_sender.pump(Speaker(2, frames=90_000).speak()))  # an hour
    await until_async(lambda: len(sender.responses) > 3)
    assert sent(sender) == [0]
    pumping.cancel()
    await asyncio.wait([pumping])


async def test_text_does_not_wait_for_playback(slot: FlowSlot) -> None:
    async def speak() -> AsyncGenerator[LMChunk, None]:
        yield LMChunk(Chunk(0, Segment.AUDIO), np.zeros((2, 90_000), np.int32))  # an hour
        for index in (1, 2, 3):
            yield LMChunk(Chunk(index, Segment.TEXT), None)

    sender = AnsweringSender(slot.table)
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", replace(QUICK, max_ahead_s=0.2))
    await asyncio.wait_for(chunk_sender.pump(speak()), PATIENCE_S)
    assert sent(sender) == [0, 1, 2, 3]


async def test_pacer_waits_for_playback(slot: FlowSlot) -> None:
    sender = AnsweringSender(slot.table)
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", replace(QUICK, max_ahead_s=0.2))
    await asyncio.wait_for(chunk_sender.pacer.wait_for_turn(), PATIENCE_S)
    await chunk_sender.pump(Speaker(1, frames=90_000).speak())  # an hour
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(chunk_sender.pacer.wait_for_turn(), 0.05)


async def test_reference_frames_do_not_count_as_unplayed_audio(slot: FlowSlot) -> None:
    async def speak() -> AsyncGenerator[LMChunk, None]:
        for index, length in enumerate((100_000, 0, 0)):
            codes = np.zeros((2, length + 2), np.int32)
            yield LMChunk(Chunk(index, Segment.AUDIO, num_reference_frames=length), codes)

    sender = AnsweringSender(slot.table)
    chunk_sender = ChunkSender(responses_to(sender), slot, "u", replace(QUICK, max_ahead_s=0.2))
    await asyncio.wait_for(chunk_sender.pump(speak()), PATIENCE_S)  # an hour, if it were decoded
    assert sent(sender) == [0, 1, 2]
