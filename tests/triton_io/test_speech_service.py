"""Requests to a language model that fails on demand are all answered, ended and released."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from stretto.disconnects import DISCONNECTS_FILE, HOST, STREAM, Disconnects
from stretto.errors import InvalidRequest, NoCapacity
from stretto.family.text import SubwordStream
from stretto.records.chunk import Chunk, LMChunk
from stretto.records.prompt import Prompt, TextPart
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment
from stretto.triton_io.chunk_sender import SenderLimits
from stretto.triton_io.flow import FlowTable, Outcome
from stretto.triton_io.seal import TAG
from stretto.triton_io.speech_service import SpeechService
from stretto.triton_io.stub import EventLoop
from tests.fakes_triton import Logger, MetricFamily, Request, ResponseSender, TritonError
from tests.families.test_text_stream import QWEN, tokenizer
from tests.patience import PATIENCE_S, until
from tests.small_vocabularies import TRACKED_CSM
from tests.triton_io.answering import AnsweringSender
from tests.triton_io.sealing import SEAL, envelope_in, part_inputs, prompt_inputs

TOKENIZER = tokenizer(QWEN)


class Model:
    """Fake language model with two chunks per prompt.

    Prompts of one row fail, prompts of two are refused, prompts of three never end, and five rows get no slot. A
    streamed text with a prompt of four rows is spoken when it is complete.
    """

    family = TRACKED_CSM

    def __init__(self) -> None:
        self.words: list[int] = []
        self.callers: list[str] = []
        self.is_complete = asyncio.Event()

    def text_stream(self) -> SubwordStream:
        return SubwordStream(TOKENIZER, range(10_000))

    def max_words(self, prompt: Prompt) -> int:
        return 100

    async def write(self, request_id: str, ids: Sequence[int], is_last: bool = False) -> None:
        self.words += ids
        if is_last:
            self.is_complete.set()

    async def generate(
        self, prompt: Prompt, request_id: str, pacer: Pacer, host: str = ""
    ) -> AsyncGenerator[LMChunk, None]:
        self.callers.append(host)
        if len(prompt.rows) == 2:
            raise InvalidRequest("text", "at most 1024 rows", 2000)
        if len(prompt.rows) == 5:
            raise NoCapacity("80 sequences are already in flight; try again")
        yield LMChunk(Chunk(0, Segment.TEXT, "hm"), None)
        if len(prompt.rows) == 1:
            raise RuntimeError("boom")
        if len(prompt.rows) == 3:
            await asyncio.sleep(60)
        if prompt.is_open:
            self.words[:0] = [int(prompt.rows[-1, self.family.text_track.stream]), *prompt.track]
            await self.is_complete.wait()
        yield LMChunk(Chunk(1, Segment.AUDIO, is_final=True), np.zeros((2, 3), np.int32))

    def stats(self) -> dict[str, float]:
        return {"frames_total": 40, "temperature": 36.6}  # the second is unknown


@pytest.fixture
def table(tmp_path: Path) -> FlowTable:
    return FlowTable.create(1, 4, tmp_path)


@pytest.fixture
def service(table: FlowTable) -> Iterator[SpeechService]:
    made = SpeechService(Model(), EventLoop("test"), table, SenderLimits(poll_s=0.005, stall_s=PATIENCE_S), SEAL)
    yield made
    made.close()


def request(table: FlowTable, num_rows: int, task: str = "tts") -> Request:
    sampling = SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.0), seed=1)
    rows = np.zeros((num_rows, 2), np.int32)
    return Request(prompt_inputs(Prompt(task, rows, sampling)), AnsweringSender(table))


def utterances(sender: ResponseSender) -> set[str]:
    return {envelope_in(each).utterance for each in sender.responses if each.error is None}


def test_requests_without_capacity_count_as_rejected_not_failed(service: SpeechService, table: FlowTable) -> None:
    asked = request(table, 5)
    service.accept(asked)
    until(lambda: asked.sender.is_final)
    (response,) = asked.sender.responses
    assert response.error.message() == "full: 80 sequences are already in flight; try again"
    until(lambda: MetricFamily.made["stretto_rejected_total"].value == 1)
    assert MetricFamily.made["stretto_failed_total"].value == 0
    until(lambda: table.num_active() == 0)


def test_served_utterance_is_sent_completely_and_counted(service: SpeechService, table: FlowTable) -> None:
    asked = request(table, 4)
    service.accept(asked)
    until(lambda: asked.sender.is_final)
    assert [each.error for each in asked.sender.responses] == [None, None]
    assert len(utterances(asked.sender)) == 1
    until(lambda: table.num_active() == 0)
    assert MetricFamily.made["stretto_utterances_total"].value == 1
    until(lambda: MetricFamily.made["stretto_active_utterances"].value == 0)
    assert MetricFamily.made["stretto_frames_total"].value == 40


def test_replies_that_will_speak_are_counted_before_they_have_frames(service: SpeechService, table: FlowTable) -> None:
    for task in ("tts", "asr", "tts"):
        service.accept(request(table, 3, task))  # the model never has frames for prompts of three rows
    until(lambda: len(service._model.callers) == 3)
    assert (table.num_active(), table.load.num_speaking) == (3, 2)


def test_model_is_told_the_host_of_each_request(service: SpeechService, table: FlowTable) -> None:
    whole, streamed = request(table, 4), open_request(table, host="192.0.2.2")
    whole.given[HOST] = "192.0.2.1"
    service.accept(whole)
    until(lambda: whole.sender.is_final)
    service.accept(streamed)
    service.accept(Request(part_inputs(TextPart(session_of(streamed), 0, "Hello", True))))
    until(lambda: streamed.sender.is_final)
    assert service._model.callers == ["192.0.2.1", "192.0.2.2"]


def test_every_request_gets_its_own_utterance_id(service: SpeechService, table: FlowTable) -> None:
    first, second = request(table, 4), request(table, 4)
    service.accept(first)
    service.accept(second)
    until(lambda: first.sender.is_final and second.sender.is_final)
    assert len(utterances(first.sender) | utterances(second.sender)) == 2


def test_failure_is_answered_and_logged_once_with_utterance_id(service: SpeechService, table: FlowTable) -> None:
    asked = request(table, 1)
    service.accept(asked)
    until(lambda: asked.sender.is_final)
    (utterance,) = utterances(asked.sender)
    error = asked.sender.responses[-1].error
    assert error.code() == TritonError.INTERNAL
    assert re.fullmatch(f"failed: utterance {utterance}: internal error [0-9a-f]{{8}}", error.message())
    (line,) = Logger.errors
    assert line.startswith(f"utterance {utterance}: Traceback")
    assert "RuntimeError: boom" in line
    assert error.message().rpartition(" ")[2] in line
    assert MetricFamily.made["stretto_failed_total"].value == 1


def test_refused_request_is_answered_and_not_logged(service: SpeechService, table: FlowTable) -> None:
    asked = request(table, 2)
    service.accept(asked)
    until(lambda: asked.sender.is_final)
    assert asked.sender.responses[-1].error.code() == TritonError.INVALID_ARG
    assert asked.sender.responses[-1].error.message() == "invalid request: text: expected at most 1024 rows, got 2000"
    assert Logger.errors == []
    assert MetricFamily.made["stretto_rejected_total"].value == 1
    assert MetricFamily.made["stretto_failed_total"].value == 0


def test_requests_of_disconnected_clients_are_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, table: FlowTable
) -> None:
    Disconnects.create(tmp_path / "disconnects")
    monkeypatch.setenv(DISCONNECTS_FILE, str(tmp_path / "disconnects"))
    disconnects, loop = Disconnects(tmp_path / "disconnects"), EventLoop("test")
    service = SpeechService(Model(), loop, table, SenderLimits(poll_s=0.005, stall_s=PATIENCE_S), SEAL)
    left, stays = request(table, 4), request(table, 4)
    for asked in (left, stays):
        asked.given[STREAM] = str(disconnects.next_number())
    disconnects.record(int(left.given[STREAM]))
    for asked in (left, stays):
        service.accept(asked)
        until(lambda sender=asked.sender: sender.is_final)
    assert (len(left.sender.responses), len(stays.sender.responses)) == (0, 2)
    assert MetricFamily.made["stretto_cancelled_total"].value == 1
    service.close()


def test_a_cancelled_utterance_ends_without_an_error(service: SpeechService, table: FlowTable) -> None:
    asked = request(table, 3)
    service.accept(asked)
    until(lambda: len(asked.sender.responses) >= 1)
    envelope = envelope_in(asked.sender.responses[0])
    table.slot_at(envelope.flow).conclude(Outcome.CANCELLED)
    until(lambda: asked.sender.is_final)
    assert all(each.error is None for each in asked.sender.responses)
    until(lambda: table.num_active() == 0)
    assert MetricFamily.made["stretto_cancelled_total"].value == 1


@pytest.mark.parametrize(
    ("outcome", "code", "kind", "counted"),
    [
        (Outcome.FAILED, TritonError.INTERNAL, "failed", "failed"),
        (Outcome.REFUSED, TritonError.INVALID_ARG, "invalid request", "rejected"),
    ],
)
def test_decoder_failures_are_sent_after_all_acknowledgements(
    service: SpeechService, table: FlowTable, outcome: Outcome, code: int, kind: str, counted: str
) -> None:
    asked = request(table, 3)
    asked.sender = ResponseSender()  # after which there is no answer
    service.accept(asked)
    until(lambda: len(asked.sender.responses) >= 1)
    envelope = envelope_in(asked.sender.responses[0])
    slot = table.slot_at(envelope.flow)
    slot.conclude(outcome, "no codec")
    time.sleep(0.05)
    assert not asked.sender.is_final
    slot.count_answer()
    until(lambda: asked.sender.is_final)
    error = asked.sender.responses[-1].error
    assert (error.code(), error.message()) == (code, f"{kind}: no codec")
    assert Logger.errors == []  # the decoder has logged it
    made = {name: MetricFamily.made[f"stretto_{name}_total"].value for name in ("failed", "rejected")}
    assert made == {"failed": 0, "rejected": 0} | {counted: 1}


def test_unresponsive_decoder_does_not_hang_the_request(table: FlowTable) -> None:
    service = SpeechService(Model(), EventLoop("test"), table, SenderLimits(poll_s=0.005, stall_s=0.2), SEAL)
    asked = request(table, 4)
    asked.sender = ResponseSender()
    service.accept(asked)
    until(lambda: asked.sender.is_final)
    assert asked.sender.responses[-1].error.message() == "failed: the decoder has acknowledged no chunk for 0.2 s"
    assert "DecoderStalled" in Logger.errors[0]
    until(lambda: table.num_active() == 0)
    service.close()


def test_more_utterances_than_slots_are_refused(service: SpeechService, table: FlowTable) -> None:
    asked = [request(table, 3) for _ in range(5)]
    for each in asked:
        service.accept(each)
    until(lambda: asked[4].sender.is_final)
    assert asked[4].sender.responses[-1].error.code() == TritonError.UNAVAILABLE
    assert not any(each.sender.is_final for each in asked[:4])
    assert MetricFamily.made["stretto_rejected_total"].value == 1


def test_unreadable_request_is_answered_with_an_error(service: SpeechService, table: FlowTable) -> None:
    asked = Request({"rows": np.zeros(3, np.int32)})
    service.accept(asked)
    assert asked.sender.is_final
    assert "rows: expected INT32 [-1, -1]" in asked.sender.responses[0].error.message()


def test_unauthenticated_prompts_take_no_slot(service: SpeechService, table: FlowTable) -> None:
    honest = request(table, 4)
    for changes in ({"rows": np.ones((4, 2), np.int32)}, {"prompt": honest.inputs["prompt"][TAG:]}):
        asked = Request(honest.inputs | changes)
        service.accept(asked)
        assert asked.sender.is_final
        (response,) = asked.sender.responses
        assert response.error.message() == (
            "invalid request: prompt: expected a record authenticated by this server, got another record"
        )
    assert table.num_active() == 0
    assert Logger.errors == []


def test_stopping_fails_waiting_requests(table: FlowTable) -> None:
    service = SpeechService(Model(), EventLoop("test"), table, SenderLimits(stall_s=0.2), SEAL)
    asked = request(table, 3)
    service.accept(asked)
    until(lambda: len(asked.sender.responses) >= 1)
    service.close()
    assert asked.sender.is_final
    assert asked.sender.responses[-1].error.code() == TritonError.UNAVAILABLE
    assert not table.path.exists()


def open_request(table: FlowTable, num_rows: int = 4, host: str = "") -> Request:
    sampling = SamplingConfig(SegmentSampling(0.0), SegmentSampling(0.0), seed=1)
    rows = np.zeros((num_rows, TRACKED_CSM.layout.num_input_streams), np.int32)
    inputs = prompt_inputs(Prompt("tts", rows, sampling, is_open=True))
    return Request(inputs, AnsweringSender(table), {HOST: host} if host else {})


def session_of(asked: Request) -> str:
    until(lambda: len(asked.sender.responses) >= 1)
    chunk = envelope_in(asked.sender.responses[0]).chunk
    assert chunk is not None
    assert (chunk.index, chunk.session != "") == (0, True)
    return chunk.session


def test_streamed_text_parts_each_get_a_receipt(service: SpeechService, table: FlowTable) -> None:
    asked = open_request(table)
    service.accept(asked)
    session = session_of(asked)
    for number, text in enumerate(("Hello, wor", "ld")):
        part = Request(part_inputs(TextPart(session, number, text, number == 1)))
        service.accept(part)
        until(lambda part=part: part.sender.is_final)
        (response,) = part.sender.responses
        receipt = envelope_in(response)
        assert (receipt.receipt, receipt.chunk, {receipt.utterance}) == (number, None, utterances(asked.sender))
    until(lambda: asked.sender.is_final)
    assert service._model.words == TOKENIZER.encode("Hello, world")
    assert MetricFamily.made["stretto_utterances_total"].value == 1
    assert [each.error for each in asked.sender.responses] == [None] * 3
    until(lambda: table.num_active() == 0)
    late = Request(part_inputs(TextPart(session, 2, "more", False)))
    service.accept(late)
    until(lambda: late.sender.is_final)
    assert "session.id: expected the id of an open streamed text" in late.sender.responses[0].error.message()
    assert Logger.errors == []


def test_disconnect_while_waiting_for_text_frees_the_session(service: SpeechService, table: FlowTable) -> None:
    asked = open_request(table)
    service.accept(asked)
    session = session_of(asked)
    table.slot_at(envelope_in(asked.sender.responses[0]).flow).conclude(Outcome.CANCELLED)
    until(lambda: asked.sender.is_final and table.num_active() == 0)
    part = Request(part_inputs(TextPart(session, 0, "Hello", True)))
    service.accept(part)
    until(lambda: part.sender.is_final)
    assert part.sender.responses[0].error.code() == TritonError.INVALID_ARG
    assert MetricFamily.made["stretto_cancelled_total"].value == 1


def test_too_many_open_streamed_texts_are_refused(
    service: SpeechService, table: FlowTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service._texts._shares, "limit", 2)
    first, second, other = open_request(table, host="a"), open_request(table, host="a"), open_request(table, host="b")
    service.accept(first)
    session_of(first)
    service.accept(second)
    until(lambda: second.sender.is_final)
    refusal = "full: 1 streamed texts are open already, 1 of them from this host; try again"
    assert second.sender.responses[0].error.message() == refusal
    assert MetricFamily.made["stretto_rejected_total"].value == 1
    service.accept(other)
    session_of(other)
    for each in (first, other):
        table.slot_at(envelope_in(each.sender.responses[0]).flow).conclude(Outcome.CANCELLED)
