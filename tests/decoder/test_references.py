"""Samples of an utterance after a reference equal those of decoding both, from the start of the utterance."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.releases.random_qwen3_codec import make_qwen3_codec
from stretto.codecs.base import Codec
from stretto.config import DecoderConfig
from stretto.decoder import windows
from stretto.decoder.windows import PART_FRAMES, References, Windower
from stretto.decoder.worker import DecoderWorker
from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes, stream
from tests.decoder.test_worker import expected_pcm, joined
from tests.fakes import FakeCodec, RecordedReply
from tests.patience import PATIENCE_S

ALONE = OutputForm(deterministic=True)


@pytest.fixture
def codec() -> FakeCodec:
    return FakeCodec()


@pytest.fixture
def worker(codec: FakeCodec) -> Iterator[DecoderWorker]:
    yield from running(codec)


def running(codec: Codec, **values: int) -> Iterator[DecoderWorker]:
    worker = DecoderWorker(codec, DecoderConfig(max_batch=8, stop_timeout_s=PATIENCE_S, **values))
    yield worker
    worker.stop()


def speak(
    worker: DecoderWorker,
    name: str,
    codes: np.ndarray,
    num_reference: int,
    borders: list[int],
    form: OutputForm = OutputForm(),  # noqa: B008 (frozen)
) -> list[RecordedReply]:
    """Push codes [K, T] cut at `borders`; the first `num_reference` frames are a reference."""
    replies = [RecordedReply() for _ in range(len(borders) + 1)]
    edges = [0, *borders, codes.shape[1]]
    for index, (begin, end) in enumerate(pairwise(edges)):
        length = num_reference if index == 0 else 0
        chunk = Chunk(index, Segment.AUDIO, is_final=index == len(borders), num_reference_frames=length)
        worker.push(name, chunk, codes[:, begin:end], replies[index], form)
    return replies


@st.composite
def utterances(draw: st.DrawFn) -> tuple[np.ndarray, int, list[int]]:
    """Draw codes, the number of reference frames, and chunk borders, none of which is within the reference."""
    num_reference, num_audible = draw(st.integers(0, 3 * PART_FRAMES)), draw(st.integers(1, 12))
    total = num_reference + num_audible
    values = draw(st.lists(st.integers(0, 6), min_size=total, max_size=total))
    borders = sorted(draw(st.sets(st.integers(num_reference, total), max_size=4)))
    return np.array([values, values], np.int32), num_reference, borders


@settings(max_examples=25, deadline=None)
@given(st.lists(utterances(), min_size=1, max_size=6), st.sampled_from([0, 1]))
def test_references_are_decoded_before_replies_but_not_sent(
    utterances: list[tuple[np.ndarray, int, list[int]]], reference_mb: int
) -> None:
    for worker in running(FakeCodec(), reference_mb=reference_mb):
        told = [
            (each, speak(worker, f"{turn}.{number}", *each))
            for turn in range(2)
            for number, each in enumerate(utterances)
        ]
        for (codes, num_reference, _), replies in told:
            np.testing.assert_allclose(joined(replies), expected_pcm(codes)[4 * num_reference :], rtol=0, atol=1e-6)
        assert worker.stats()["open_utterances"] == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(1, 6), st.sets(st.integers(1, 19), max_size=4))
def test_silent_frames_are_decoded_but_not_sent(values: list[int], num_silent: int, borders: set[int]) -> None:
    """Also if the reply has no other frames, or its first chunk has fewer."""
    codes = np.array([values, values], np.int32)
    parts = np.split(codes, sorted(border for border in borders if border < len(values)), axis=1)
    for worker in running(FakeCodec()):
        replies = [RecordedReply() for _ in parts]
        for index, (part, reply) in enumerate(zip(parts, replies, strict=True)):
            is_final = index == len(parts) - 1
            number = 0 if index else num_silent
            worker.push("a", Chunk(index, Segment.AUDIO, is_final=is_final, num_silent_frames=number), part, reply)
        expected = expected_pcm(codes)[4 * num_silent :]
        pcm = [reply.pcm for reply in replies if reply.wait().pcm is not None]
        np.testing.assert_allclose(np.concatenate([[], *pcm]), expected, rtol=0, atol=1e-6)
        event = replies[-1].event
        assert event is not None
        assert event["report"]["audio_s"] == pytest.approx(len(expected) / 100)
        assert event["start_s"] + event["duration_s"] == pytest.approx(len(expected) / 100)


def test_silent_frames_after_the_first_frame_are_refused(worker: DecoderWorker) -> None:
    replies = [RecordedReply(), RecordedReply()]
    codes = np.full((2, 3), 3, np.int32)
    worker.push("a", Chunk(0, Segment.AUDIO), codes, replies[0])
    worker.push("a", Chunk(1, Segment.AUDIO, num_silent_frames=1), codes, replies[1])
    assert isinstance(replies[1].wait().error, InvalidRequest)
    assert "chunk.num_silent_frames: expected 0 after the first frame, got 1" in str(replies[1].error)


def test_codec_continues_exactly_after_a_reference() -> None:
    codec = make_qwen3_codec("narrow")
    codes = random_codes(codec, 1, 110)
    whole = stream(codec, codes, [110])[0, 90 * 1920 :].numpy()
    for worker in running(codec):
        for name in ("first", "remembered"):
            pcm = joined(speak(worker, name, codes[0].numpy(), 90, [90, 92, 99]))
            assert pcm.shape == (20 * 1920,)
            assert np.abs(pcm - whole).max() <= 1e-5


def test_reference_is_decoded_in_parts_and_cached(worker: DecoderWorker, codec: FakeCodec) -> None:
    codes = np.tile(np.arange(60, dtype=np.int32) % 7, (2, 1))
    joined(speak(worker, "first", codes, 55, [55]))
    sizes = [frames for _, _, frames, _ in codec.batches]
    assert sizes == [24, 25, 5, 6]  # one frame waits for its right neighbour
    before = worker.stats()["session_bytes"]
    assert before > 0
    joined(speak(worker, "second", codes, 55, [55]))
    assert [frames for _, _, frames, _ in codec.batches[4:]] == [6]
    assert worker.stats()["session_bytes"] == before


def test_deterministic_output_reuses_only_deterministic_references(worker: DecoderWorker, codec: FakeCodec) -> None:
    codes = np.tile(np.arange(30, dtype=np.int32) % 7, (2, 1))
    counts = []
    for name, form in (("a", OutputForm()), ("b", ALONE), ("c", ALONE), ("d", OutputForm())):
        before = len(codec.batches)
        joined(speak(worker, name, codes, 20, [], form))
        counts.append(len(codec.batches) - before)
    assert counts == [2, 2, 1, 1]


def test_event_times_start_at_the_reply(worker: DecoderWorker) -> None:
    codes = np.full((2, 12), 3, np.int32)
    opening, first, last = speak(worker, "a", codes, 6, [6, 9])
    assert opening.wait().pcm is None
    events = [reply.wait().event for reply in (opening, first, last)]
    assert [event["start_s"] for event in events] == [0.0, 0.0, 0.08]
    assert [event["duration_s"] for event in events] == [0.0, 0.08, 0.16]
    assert events[-1]["report"]["audio_s"] == 0.24
    assert events[-1]["report"]["first_sound_s"] == 0.0


def test_reference_codes_may_follow_an_empty_first_chunk(worker: DecoderWorker) -> None:
    """The first chunk of a live session has only its name."""
    codes = np.random.default_rng(1).integers(0, 8, (2, 9)).astype(np.int32)
    wanted = joined(speak(worker, "a", codes, 4, []))
    replies = [RecordedReply(), RecordedReply()]
    worker.push("b", Chunk(0, Segment.AUDIO, session="s1"), None, replies[0])
    worker.push("b", Chunk(1, Segment.AUDIO, num_reference_frames=4, is_final=True), codes, replies[1])
    assert replies[0].wait().pcm is None
    assert (replies[1].wait().pcm == wanted).all()


def test_reference_frames_alone_produce_no_samples(worker: DecoderWorker) -> None:
    codes = np.full((2, 30), 3, np.int32)
    assert [reply.wait().pcm for reply in speak(worker, "a", codes, 30, [])] == [None]


@pytest.mark.parametrize(
    ("index", "length", "codes", "said"),
    [
        (0, 5, np.zeros((2, 4), np.int32), r"chunk.num_reference_frames: expected at most 4"),
        (0, 1, None, r"chunk.num_reference_frames: expected at most 0"),
        (1, 1, np.zeros((2, 4), np.int32), r"chunk.num_reference_frames: expected 0 after the first frame, got 1"),
        (0, 2, np.full((2, 4), 8, np.int32), r"codes: expected values in \[0, 8\)"),
        (0, 2, np.zeros((3, 4), np.int32), r"codes: expected shape \[2, T\]"),
        (0, 2, np.zeros(4, np.int32), r"codes: expected shape \[2, T\]"),
    ],
    ids=str,
)
def test_invalid_reference_chunk_is_refused(
    worker: DecoderWorker, index: int, length: int, codes: np.ndarray | None, said: str
) -> None:
    for earlier in range(index):
        worker.push("a", Chunk(earlier, Segment.AUDIO), np.zeros((2, 1), np.int32), RecordedReply())
    reply = RecordedReply()
    worker.push("a", Chunk(index, Segment.AUDIO, num_reference_frames=length), codes, reply)
    assert isinstance(reply.wait().error, InvalidRequest)
    with pytest.raises(InvalidRequest, match=said):
        raise reply.error
    assert joined(speak(worker, "b", np.ones((2, 3), np.int32), 0, [])).shape == (12,)


def test_least_recently_used_references_are_evicted() -> None:
    windower = Windower(FakeCodec.spec)
    windower.push(np.zeros((2, 2), np.int64), is_final=False)
    state = torch.zeros(1, 1, dtype=torch.float64)
    size = windower.num_bytes + state.nbytes
    references = References(3 * size)
    for name in (b"a", b"b", b"c"):
        references.remember(name, windower, state)
    assert references.num_bytes == 3 * size
    assert references.find(b"a") is not None
    references.remember(b"d", windower, state)
    assert references.num_bytes == 3 * size
    assert [references.find(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    references.remember(b"e", windower, torch.zeros(1, 3 * size))
    assert references.find(b"e") is None
    assert references.num_bytes == 3 * size


def test_number_of_references_is_bounded_however_small_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, each state occupies one row of a table with a fixed number of rows."""
    monkeypatch.setattr(windows, "MAX_REFERENCES", 2)
    references = References(1 << 20)
    for name in (b"a", b"b", b"c"):
        references.remember(name, Windower(FakeCodec.spec), torch.zeros(1, 1))
    assert [references.find(name) is not None for name in (b"a", b"b", b"c")] == [False, True, True]
    assert references.num_bytes == 2 * (Windower(FakeCodec.spec).num_bytes + torch.zeros(1, 1).nbytes)


def test_continued_utterance_does_not_recache_its_reference(worker: DecoderWorker) -> None:
    """By then, its state belongs to a later frame."""
    codes, references = np.tile(np.arange(40, dtype=np.int32) % 7, (2, 1)), worker._sessions._references
    for index, (begin, end) in enumerate(((0, 30), (30, 35), (35, 40))):
        reply, length = RecordedReply(), 0 if index else 30
        chunk = Chunk(index, Segment.AUDIO, num_reference_frames=length, is_final=end == 40)
        if index == 2:
            references._max_bytes = references.num_bytes
            joined(speak(worker, "other", codes[:, ::-1].copy(), 30, [30]))  # which makes room for its own reference
        worker.push("a", chunk, codes[:, begin:end], reply)
        reply.wait()
    found = joined(speak(worker, "b", codes, 30, [30]))
    np.testing.assert_allclose(found, expected_pcm(codes)[4 * 30 :], rtol=0, atol=1e-6)


def test_continuing_from_a_cached_reference_does_not_change_it() -> None:
    windower, references = Windower(FakeCodec.spec), References(1 << 20)
    windower.push(np.ones((2, 4), np.int64), is_final=False)
    references.remember(b"a", windower, torch.zeros(1, 1))
    for goes_on in (windower, *(found[0] for found in [references.find(b"a")] if found)):
        goes_on.push(np.full((2, 5), 3, np.int64), is_final=False)
    found = references.find(b"a")
    assert found is not None
    assert found[0].next_frame == 3
    window = found[0].push(None, is_final=True)
    assert window is not None
    assert window.codes.tolist() == [[1, 1], [1, 1]]
