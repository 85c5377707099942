"""Utterances whose codebooks are filled in: whatever the chunks and the neighbours, the samples are those of one decode
of what a fill of the whole gives."""

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.codecs.refinement import Passage, RefinedCodec
from stretto.config import DecoderConfig
from stretto.decoder import loop
from stretto.decoder.streaming import PART_FRAMES
from stretto.decoder.worker import DecoderWorker
from stretto.errors import Cancelled, InvalidRequest
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment
from tests.decoder.test_worker import expected_pcm, joined
from tests.fakes import FakeCodec, RecordedReply
from tests.patience import PATIENCE_S

ALONE = OutputForm(deterministic=True)
POISON = 49  # an id of a prompt that cannot be filled


class FakeRefinement:
    """Fake refinement whose codes depend on the complete prompt and first codebook, and on nothing else."""

    num_streams, num_ids, codebook_size, max_rows = 2, 50, 7, 200

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.is_called, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def fill(self, passages: Sequence[Passage], on_codebook: Callable[[], None] | None = None) -> list[np.ndarray]:
        self.is_called.set()
        assert self.gate.wait(PATIENCE_S)
        assert on_codebook is not None
        on_codebook()
        self.sizes.append(len(passages))
        if any((passage.prompt == POISON).any() for passage in passages):
            raise ValueError("poisoned")
        return [filled(passage.prompt, passage.first_codes) for passage in passages]


def filled(prompt: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return codes [2, T] that show the filled codebook, because the fake codec decodes only the first codebook."""
    codes = (first + prompt.sum() + first.sum() * np.arange(1, len(first) + 1)) % 7
    return np.stack([codes, codes])


@pytest.fixture
def refinement() -> FakeRefinement:
    return FakeRefinement()


@pytest.fixture
def codec() -> FakeCodec:
    return FakeCodec()


@pytest.fixture
def worker(codec: FakeCodec, refinement: FakeRefinement) -> Iterator[DecoderWorker]:
    worker = DecoderWorker(RefinedCodec(codec, refinement), DecoderConfig(max_batch=8, stop_timeout_s=PATIENCE_S))
    yield worker
    worker.stop()


def prompt_of(name: str, length: int = 5) -> np.ndarray:
    """Return prompt rows [2, P] of ids."""
    return np.random.default_rng(len(name) + length).integers(0, 40, (2, length), np.int32)


def push(
    worker: DecoderWorker,
    name: str,
    index: int,
    codes: np.ndarray | None,
    is_final: bool = False,
    form: OutputForm = OutputForm(),  # noqa: B008 (frozen)
) -> RecordedReply:
    """Push a chunk; the first chunk contains a prompt."""
    reply = RecordedReply(name=(name, index))
    worker.push(name, Chunk(index, Segment.AUDIO, is_final=is_final, is_prompt=index == 0), codes, reply, form)
    return reply


def speak(
    worker: DecoderWorker,
    name: str,
    prompt: np.ndarray,
    first: np.ndarray,
    borders: Sequence[int] = (),
    form: OutputForm = OutputForm(),  # noqa: B008 (frozen)
) -> list[RecordedReply]:
    """Push a prompt and then codes [T] cut at `borders`."""
    edges, replies = [0, *borders, len(first)], [push(worker, name, 0, prompt, form=form)]
    for index, (begin, end) in enumerate(pairwise(edges), 1):
        replies.append(push(worker, name, index, first[None, begin:end], index == len(edges) - 1))
    return replies


@st.composite
def utterances(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Draw the first codebook of an utterance, and the ends of its chunks."""
    length = draw(st.integers(1, 3 * PART_FRAMES))
    first = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 7, length, np.int32)
    return first, sorted(draw(st.sets(st.integers(0, length), max_size=4)))


@settings(max_examples=20, deadline=None)
@given(st.lists(utterances(), min_size=1, max_size=6), st.booleans())
def test_filling_is_independent_of_chunks_and_batch(told: list[tuple[np.ndarray, list[int]]], is_alone: bool) -> None:
    worker = DecoderWorker(
        RefinedCodec(FakeCodec(), FakeRefinement()), DecoderConfig(max_batch=4, stop_timeout_s=PATIENCE_S)
    )
    form = ALONE if is_alone else OutputForm()
    prompts = [prompt_of("p" * at, 1 + at) for at in range(len(told))]
    replies = [
        speak(worker, f"u{at}", prompt, first, borders, form)
        for at, (prompt, (first, borders)) in enumerate(zip(prompts, told, strict=True))
    ]
    for prompt, (first, _), each in zip(prompts, told, replies, strict=True):
        np.testing.assert_allclose(joined(each), expected_pcm(filled(prompt, first)), rtol=0, atol=1e-5)
        assert [reply.pcm is None for reply in each] == [True] * (len(each) - 1) + [False]
    assert worker.stats()["open_utterances"] == 0
    worker.stop()


@pytest.mark.parametrize(("max_rows", "sizes"), [(loop.MAX_PASSAGE_ROWS, [1, 1, 1, 3]), (64, [1, 1, 1, 1, 2])])
def test_passages_of_equal_length_are_refined_in_one_batch(
    max_rows: int, sizes: list[int], worker: DecoderWorker, refinement: FakeRefinement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has a maximum number of rows, which bounds its memory."""
    monkeypatch.setattr(loop, "MAX_PASSAGE_ROWS", max_rows)
    refinement.gate.clear()
    plug = speak(worker, "plug", prompt_of("plug"), np.ones(6, np.int32))
    assert refinement.is_called.wait(PATIENCE_S)
    first = np.arange(40, dtype=np.int32) % 7
    waiting = [speak(worker, f"u{at}", prompt_of("p", 8 + at), first[: 10 + at]) for at in range(3)]
    waiting += [speak(worker, "long", prompt_of("p", 40), first)]
    waiting += [speak(worker, "alone", prompt_of("p", 4), first[:10], form=ALONE)]
    refinement.gate.set()
    for replies in [plug, *waiting]:
        for reply in replies:
            assert reply.wait().error is None
    assert sorted(refinement.sizes) == sizes


def test_progress_is_reported_to_all_waiting_per_codebook(worker: DecoderWorker, refinement: FakeRefinement) -> None:
    """Two passages of different lengths are filled one after the other.

    The second one arrives during the first and is notified of both. An answered request gets no further notification.
    """
    told = {"short": 0, "long": 0}
    refinement.gate.clear()

    def push_last(name: str, length: int) -> RecordedReply:
        push(worker, name, 0, prompt_of("p", length))
        reply, chunk = RecordedReply(), Chunk(1, Segment.AUDIO, is_final=True)

        def tell() -> None:
            told[name] += 1

        worker.push(name, chunk, np.ones((1, length), np.int32), reply, on_progress=tell)
        return reply

    replies = [push_last("short", 4)]
    assert refinement.is_called.wait(PATIENCE_S)
    replies.append(push_last("long", 40))
    refinement.gate.set()
    assert all(reply.wait().error is None for reply in replies)
    assert refinement.sizes == [1, 1]
    assert told == {"short": 1, "long": 2}


def test_refinement_failures_end_only_their_utterance(worker: DecoderWorker, refinement: FakeRefinement) -> None:
    prompt, first = prompt_of("p"), np.arange(9, dtype=np.int32) % 7
    bad = prompt.copy()
    bad[1, 2] = POISON
    replies = {name: speak(worker, name, rows, first) for name, rows in (("a", prompt), ("bad", bad), ("b", prompt))}
    assert "poisoned" in str(replies["bad"][-1].wait().error)
    for name in "ab":
        np.testing.assert_allclose(joined(replies[name]), expected_pcm(filled(prompt, first)), rtol=0, atol=1e-5)
    assert worker.stats()["open_utterances"] == 0


def test_utterance_abandoned_before_filling_frees_its_memory(worker: DecoderWorker) -> None:
    push(worker, "gone", 0, prompt_of("p")).wait()
    push(worker, "gone", 1, np.zeros((1, 4), np.int32)).wait()
    assert worker.stats()["session_bytes"] > 8 * 4
    worker.abandon("gone")
    late = push(worker, "gone", 2, np.zeros((1, 4), np.int32), is_final=True).wait()
    assert isinstance(late.error, Cancelled | InvalidRequest)
    assert worker.stats()["session_bytes"] == 0


def test_reply_without_frames_has_no_samples(worker: DecoderWorker, refinement: FakeRefinement) -> None:
    push(worker, "u", 0, prompt_of("p")).wait()
    last = push(worker, "u", 1, None, is_final=True).wait()
    assert (last.pcm, last.error) == (None, None)
    assert not refinement.sizes


def test_samples_have_the_requested_rate(worker: DecoderWorker) -> None:
    first = np.arange(60, dtype=np.int32) % 7
    pcm = joined(speak(worker, "u", prompt_of("p"), first, [10], OutputForm(sample_rate=4000)))
    assert len(pcm) == 60 * 4 * 40  # the fake codec's rate is 100 Hz


@pytest.mark.parametrize(
    ("index", "codes", "message"),
    [
        (0, np.zeros((3, 4), np.int32), r"codes: expected a prompt of shape \[2, P >= 1\], got \[3, 4\]"),
        (0, np.zeros((2, 0), np.int32), r"codes: expected a prompt of shape"),
        (0, np.full((2, 4), 50, np.int32), r"codes: expected values in \[0, 50\), got \[50, 50\]"),
        (0, None, r"chunk\.is_prompt: expected the prompt's rows"),
        (1, np.zeros((2, 4), np.int32), r"codes: expected shape \[1, T\], got \[2, 4\]"),
        (1, np.full((1, 4), 7, np.int32), r"codes: expected values in \[0, 7\), got \[7, 7\]"),
        (1, np.full((1, 4), -1, np.int32), r"codes: expected values in \[0, 7\), got \[-1, -1\]"),
        (1, np.zeros((1, 4), np.float32), "codes: expected an integer type, got float32"),
        (1, np.zeros((1, 196), np.int32), "codes: expected at most 200 rows and frames, got 201"),
    ],
)
def test_invalid_refinement_codes_are_refused(
    worker: DecoderWorker, index: int, codes: np.ndarray | None, message: str
) -> None:
    if index:
        push(worker, "u", 0, prompt_of("p")).wait()
    with pytest.raises(InvalidRequest, match=message):
        raise push(worker, "u", index, codes).wait().error or AssertionError("not refused")
    assert worker.stats()["open_utterances"] == 0


@pytest.mark.parametrize(("index", "is_prompt"), [(0, False), (1, True)])
def test_prompt_chunk_must_be_first_and_unique(worker: DecoderWorker, index: int, is_prompt: bool) -> None:
    if index:
        push(worker, "u", 0, prompt_of("p")).wait()
    reply = RecordedReply()
    worker.push("u", Chunk(index, Segment.AUDIO, is_prompt=is_prompt), np.zeros((2, 4), np.int32), reply)
    with pytest.raises(InvalidRequest, match=r"chunk\.is_prompt: expected"):
        raise reply.wait().error or AssertionError("not refused")


def test_codec_without_refinement_refuses_prompt_chunks() -> None:
    worker = DecoderWorker(FakeCodec(), DecoderConfig(stop_timeout_s=PATIENCE_S))
    with pytest.raises(InvalidRequest, match=r"chunk\.is_prompt: expected no prompt"):
        raise push(worker, "u", 0, prompt_of("p")).wait().error or AssertionError("not refused")
    worker.stop()
