"""Word times in the decoder: samples are sent immediately, and only the last event waits for the aligner."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from stretto.aligning.align import TimedWord
from stretto.config import DecoderConfig
from stretto.decoder import alignment
from stretto.decoder.alignment import Collected, StoredBytes
from stretto.decoder.worker import DecoderWorker
from stretto.errors import Cancelled
from stretto.records.chunk import ALIGNED_RATE, Alignment, Chunk, Report
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment
from tests.decoder.test_worker import expected_pcm, frames, joined, push
from tests.fakes import FakeCodec, RecordedReply
from tests.patience import PATIENCE_S, until

REPORT = Report("stop", 9, 8, 20, 20, 1.5, 7, 0.1, 0.2, 0.9)
WORDS = [TimedWord("the", 0.02, 0.08, 0.75), TimedWord("cat", 0.12345, 0.2, 0.5)]
SPOKEN = Alignment("the cat")


class FakeAligner:
    """Fake aligner that records jobs, which the test answers."""

    def __init__(self) -> None:
        self.jobs: list[tuple[np.ndarray, int, str, Callable[[Any], None]]] = []
        self.is_closed = False

    def submit(self, pcm: list[np.ndarray], rate: int, text: str, answer: Callable[[Any], None]) -> None:
        self.jobs.append((np.concatenate(pcm), rate, text, answer))

    def close(self) -> None:
        self.is_closed = True
        for *_, answer in self.jobs:
            answer(None)


@pytest.fixture
def aligner() -> FakeAligner:
    return FakeAligner()


@pytest.fixture
def worker(aligner: FakeAligner) -> Iterator[DecoderWorker]:
    worker = DecoderWorker(FakeCodec(), DecoderConfig(stop_timeout_s=PATIENCE_S), aligner=aligner)
    yield worker
    worker.stop()


def speak(
    worker: DecoderWorker, request: Alignment = SPOKEN, codes: np.ndarray | None = None, form: OutputForm | None = None
) -> list[RecordedReply]:
    """Push two chunks with frames and a last one without frames; return the replies, the last one unanswered."""
    codes = frames(1, 2, 3, 4, 5) if codes is None else codes
    chunks = [
        (Chunk(0, Segment.AUDIO, alignment=request), codes[:, :2]),
        (Chunk(1, Segment.TAIL, ends_audio=True), codes[:, 2:]),
        (Chunk(2, Segment.TAIL, is_final=True, report=REPORT), None),
    ]
    replies = [RecordedReply() for _ in chunks]
    for reply, (chunk, part) in zip(replies, chunks, strict=True):
        worker.push("u", chunk, part, reply, form or OutputForm())
    for reply in replies[:2]:
        reply.wait()
    return replies


def until_jobs(aligner: FakeAligner, worker: DecoderWorker, number: int = 1) -> None:
    """Wait until the decoder has handed over the jobs of its last chunks; other utterances are answered meanwhile."""
    for index in range(3):
        push(worker, f"later{index}", 0, frames(1), is_final=True).wait()
    until(lambda: len(aligner.jobs) >= number)
    assert len(aligner.jobs) == number


def test_samples_are_sent_before_word_times_are_known(worker: DecoderWorker, aligner: FakeAligner) -> None:
    codes = frames(1, 2, 3, 4, 5)
    first, second, last = speak(worker, codes=codes)
    until_jobs(aligner, worker)  # other utterances are decoded and answered meanwhile
    np.testing.assert_allclose(joined([first, second]), expected_pcm(codes), atol=1e-5)
    assert second.event is not None
    assert not second.event["is_final"]
    assert last.event is None
    (pcm, rate, text, answer), *_ = aligner.jobs
    assert (text, rate, pcm.dtype) == ("the cat", FakeCodec().spec.sample_rate, np.int16)
    np.testing.assert_array_equal(pcm, np.rint(np.clip(expected_pcm(codes), -1, 1) * 32_767).astype(np.int16))
    answer(WORDS)
    event = last.wait().event
    assert event is not None
    assert last.pcm is None
    assert event["words"] == [
        {"word": "the", "start_s": 0.02, "end_s": 0.08, "score": 0.75, "text_start": 0, "text_end": 3},
        {"word": "cat", "start_s": 0.1235, "end_s": 0.2, "score": 0.5, "text_start": 4, "text_end": 7},
    ]
    assert (event["is_final"], event["report"]["aligned"], event["report"]["seed"]) == (True, True, 7)
    assert worker.stats()["session_bytes"] == 0


def test_missing_alignment_in_time_is_reported(worker: DecoderWorker, aligner: FakeAligner) -> None:
    *_, last = speak(worker)
    until_jobs(aligner, worker)
    aligner.jobs[0][3](None)
    event = last.wait().event
    assert event is not None
    assert (event["words"], event["report"]["aligned"], event["is_final"]) == ([], False, True)
    assert event["report"]["untimed_words"] == ["the", "cat"]


def test_resampled_utterance_is_aligned_on_its_decoded_samples(worker: DecoderWorker, aligner: FakeAligner) -> None:
    codes = frames(*range(1, 7))
    replies = speak(worker, codes=codes, form=OutputForm("pcm_s16le", 8_000))
    until_jobs(aligner, worker)
    aligner.jobs[0][3](WORDS)
    assert replies[2].wait().pcm is None
    num_samples = sum(len(reply.pcm) for reply in replies if reply.pcm is not None)
    assert abs(num_samples - len(expected_pcm(codes)) * 80) <= 2
    assert len(aligner.jobs[0][0]) == len(expected_pcm(codes))
    assert replies[2].event is not None
    assert replies[2].event["report"]["audio_s"] == num_samples / 8_000


def test_streamed_text_is_aligned_once_complete(worker: DecoderWorker, aligner: FakeAligner) -> None:
    worker.push("u", Chunk(0, Segment.AUDIO, alignment=Alignment()), frames(1, 2), RecordedReply())
    last = RecordedReply()
    worker.push("u", Chunk(1, Segment.AUDIO, ends_audio=True), frames(3), RecordedReply())
    worker.push("u", Chunk(2, Segment.TAIL, is_final=True, report=REPORT, written="the cat"), None, last)
    until_jobs(aligner, worker)
    assert aligner.jobs[0][2] == "the cat"
    aligner.jobs[0][3](WORDS)
    event = last.wait().event
    assert event is not None
    assert [(word["word"], word["text_start"]) for word in event["words"]] == [("the", 0), ("cat", 4)]
    assert event["report"]["untimed_words"] == []


def test_words_of_a_piece_have_no_place_in_the_whole_text(worker: DecoderWorker, aligner: FakeAligner) -> None:
    *_, last = speak(worker, Alignment("the cat", is_piece=True))
    until_jobs(aligner, worker)
    aligner.jobs[0][3](WORDS)
    event = last.wait().event
    assert event is not None
    assert [word["word"] for word in event["words"]] == ["the", "cat"]
    assert not any("text_start" in word for word in event["words"])


def test_alignment_defaults_to_the_generated_text(worker: DecoderWorker, aligner: FakeAligner) -> None:
    for index, text in enumerate(("a ", "cat")):
        chunk = Chunk(index, Segment.TEXT, text, alignment=Alignment() if index == 0 else None)
        worker.push("u", chunk, None, RecordedReply())
    worker.push("u", Chunk(2, Segment.AUDIO, ends_audio=True), frames(1, 2), RecordedReply())
    last = RecordedReply()
    worker.push("u", Chunk(3, Segment.AUDIO, is_final=True), None, last)
    until_jobs(aligner, worker)
    assert aligner.jobs[0][2] == "a cat"


def test_a_transcript_is_aligned_with_its_recording(worker: DecoderWorker, aligner: FakeAligner) -> None:
    recording = np.arange(-800, 800, dtype=np.int16)
    asked = Chunk(0, Segment.TEXT, "the ", alignment=Alignment(recording=recording.tobytes()))
    worker.push("u", asked, None, RecordedReply())
    last = RecordedReply()
    worker.push("u", Chunk(1, Segment.TEXT, "cat", is_final=True, report=REPORT), None, last)
    until_jobs(aligner, worker)
    pcm, rate, text, answer = aligner.jobs[0]
    assert (rate, text) == (ALIGNED_RATE, "the cat")
    np.testing.assert_array_equal(pcm, recording)
    answer(WORDS)
    event = last.wait().event
    assert event is not None
    assert (event["text"], len(event["words"])) == ("cat", 2)
    assert not any("text_start" in word for word in event["words"]), "the text is not the client's"


def test_missing_audio_to_align_is_reported_immediately(worker: DecoderWorker, aligner: FakeAligner) -> None:
    silent = RecordedReply()
    worker.push("u", Chunk(0, Segment.AUDIO, is_final=True, alignment=SPOKEN), None, silent)
    event = silent.wait().event
    assert event is not None
    assert event["report"]["aligned"] is False
    assert aligner.jobs == []


def test_report_without_an_aligner_is_not_aligned() -> None:
    worker = DecoderWorker(FakeCodec(), DecoderConfig(stop_timeout_s=PATIENCE_S))
    event = speak(worker)[2].wait().event
    worker.stop()
    assert event is not None
    assert event["report"]["aligned"] is False


def test_exceeding_the_alignment_buffer_loses_only_word_times(aligner: FakeAligner) -> None:
    worker = DecoderWorker(FakeCodec(), DecoderConfig(stop_timeout_s=PATIENCE_S, align_mb=0), aligner=aligner)
    replies = speak(worker)
    event = replies[2].wait().event
    worker.stop()
    assert event is not None
    assert event["report"]["aligned"] is False
    np.testing.assert_allclose(joined(replies[:2]), expected_pcm(frames(1, 2, 3, 4, 5)), atol=1e-5)


def test_samples_beyond_the_alignment_limit_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "MAX_ALIGNED_S", 2)
    stored, answers = StoredBytes(1 << 20), list[Any]()
    collected = Collected.begin(SPOKEN, 100, stored)
    for _ in range(4):  # nor what follows
        collected.add(Chunk(0, Segment.AUDIO), np.zeros(90, np.float32))
    assert (stored.held, collected.pcm) == (0, [])
    collected.align(FakeAligner(), answers.append)
    assert answers == [None]


def test_alignment_is_dropped_for_a_disconnected_client(worker: DecoderWorker, aligner: FakeAligner) -> None:
    *_, last = speak(worker)
    until_jobs(aligner, worker)
    last.cancelled = True
    aligner.jobs[0][3](WORDS)
    assert isinstance(last.wait().error, Cancelled)
    assert worker.stats()["session_bytes"] == 0


def test_an_abandoned_utterance_frees_its_samples(worker: DecoderWorker, aligner: FakeAligner) -> None:
    push_one = RecordedReply()
    worker.push("u", Chunk(0, Segment.AUDIO, alignment=SPOKEN), frames(1, 2, 3, 4), push_one)
    push_one.wait()
    assert worker.stats()["session_bytes"] > 0
    worker.abandon("u")
    push(worker, "later", 0, frames(1), is_final=True).wait()
    assert worker.stats()["session_bytes"] == 0


def test_stopping_decoder_answers_pending_alignments(aligner: FakeAligner) -> None:
    worker = DecoderWorker(FakeCodec(), DecoderConfig(stop_timeout_s=PATIENCE_S), aligner=aligner)
    *_, last = speak(worker)
    worker.stop()
    event = last.wait().event
    assert event is not None
    assert (aligner.is_closed, event["report"]["aligned"]) == (True, False)
