"""A chunk whose samples come with it is answered before it is decoded, and its state is the same afterwards."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.releases.random_qwen3_codec import make_qwen3_codec
from stretto.codecs.base import Codec, CodecSpec, Stateful, Window
from stretto.config import DecoderConfig
from stretto.decoder.worker import DecoderWorker
from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes, stream
from tests.fakes import RecordedReply
from tests.patience import PATIENCE_S

GOOD = 0.5


class Counting:
    """Codec whose sample of a frame is its code plus the sum of the codes before; code 7 cannot be decoded."""

    spec = CodecSpec("counting", 100, 4, num_codebooks=2, codebook_size=8, streaming=Stateful())

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.num_decoded = 0

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1)

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        assert self.gate.wait(PATIENCE_S)
        self.num_decoded += 1
        code = window.codes[:, 0].float()
        if bool((code == 7).any()):
            raise ValueError("cannot decode")
        total = window.state + code.cumsum(1)
        return (total / 64).repeat_interleave(4, dim=1), total[:, -1:]


@pytest.fixture
def codec() -> Counting:
    return Counting()


@pytest.fixture
def worker(codec: Counting) -> Iterator[DecoderWorker]:
    yield from running(codec)
    codec.gate.set()


def running(codec: Codec) -> Iterator[DecoderWorker]:
    worker = DecoderWorker(codec, DecoderConfig(max_batch=8, stop_timeout_s=PATIENCE_S))
    yield worker
    if isinstance(codec, Counting):
        codec.gate.set()
    worker.stop()


def frames(*values: int) -> np.ndarray:
    return np.array([values, values], np.int32)


def push(worker: DecoderWorker, name: str, chunk: Chunk, codes: np.ndarray) -> RecordedReply:
    reply = RecordedReply()
    worker.push(name, chunk, codes, reply)
    return reply


def first(samples: np.ndarray, **fields: int) -> Chunk:
    return Chunk(0, Segment.AUDIO, samples=samples.astype("<f4").tobytes(), **fields)


@pytest.mark.parametrize("num_silent", [0, 1, 2])
def test_answer_comes_before_the_decoding(worker: DecoderWorker, codec: Counting, num_silent: int) -> None:
    """The gate is closed until the client has its samples; the next chunk waits for the state."""
    codec.gate.clear()
    given = np.full(8, GOOD, np.float32)
    early = push(worker, "a", first(given, num_silent_frames=num_silent), frames(1, 2)).wait()
    last = push(worker, "a", Chunk(1, Segment.AUDIO, is_final=True), frames(3))
    assert codec.num_decoded == 0
    expected = given[4 * num_silent :]
    assert (early.pcm is None) == (num_silent == 2)
    assert early.pcm is None or np.array_equal(early.pcm, expected)
    assert early.event is not None
    assert early.event["duration_s"] == len(expected) / 100
    codec.gate.set()
    assert np.array_equal(last.wait().pcm, np.full(4, (1 + 2 + 3) / 64, np.float32))
    assert last.event is not None
    assert last.event["start_s"] == len(expected) / 100
    assert last.event["report"]["audio_s"] == (len(expected) + 4) / 100
    assert worker.stats()["chunks"] == 2
    assert worker.stats()["failed"] == 0


def test_state_after_given_samples_equals_that_of_decoded_ones() -> None:
    """The rest of the reply has the same bits."""
    codec = make_qwen3_codec("narrow")
    codes = random_codes(codec, 1, 14)
    pcm = stream(codec, codes, [2, 4, 8])[0].numpy()
    parts = np.split(codes[0].numpy(), [2, 6], axis=1)
    for worker in running(codec):
        for name, samples in (("decoded", b""), ("given", pcm[: 2 * 1920].astype("<f4").tobytes())):
            chunks = [Chunk(index, Segment.AUDIO, is_final=index == 2) for index in range(3)]
            chunks[0] = replace(chunks[0], samples=samples)
            replies = [push(worker, name, chunk, part) for chunk, part in zip(chunks, parts, strict=True)]
            found = [reply.wait().pcm for reply in replies]
            assert np.array_equal(np.concatenate([part for part in found if part is not None]), pcm), name


def test_samples_of_another_length_are_refused(worker: DecoderWorker) -> None:
    reply = push(worker, "a", first(np.zeros(7)), frames(1, 2)).wait()
    assert isinstance(reply.error, InvalidRequest)
    assert "chunk.samples: expected 32 bytes for 2 frames, got 28 bytes" in str(reply.error)


def test_chunk_that_ends_the_reply_is_decoded(worker: DecoderWorker) -> None:
    """Its end may be faded out."""
    reply = push(worker, "a", first(np.full(4, GOOD), is_final=True), frames(1)).wait()
    assert np.array_equal(reply.pcm, np.full(4, 1 / 64, np.float32))


def test_failure_after_the_answer_fails_the_next_chunk_alone(worker: DecoderWorker) -> None:
    early = push(worker, "a", first(np.full(4, GOOD)), frames(7)).wait()
    assert early.error is None
    failed = push(worker, "a", Chunk(1, Segment.AUDIO), frames(1)).wait()
    assert isinstance(failed.error, ValueError)
    again = push(worker, "a", Chunk(0, Segment.AUDIO, is_final=True), frames(1)).wait()
    assert np.array_equal(again.pcm, np.full(4, 1 / 64, np.float32)), "the utterance is over"
