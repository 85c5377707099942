"""With deterministic output, equal codes give equal bytes at any load and timing."""

import random

import numpy as np
import pytest

from benchmarks.harness import CHECKPOINT
from stretto.codecs.base import Codec, load_codec
from stretto.config import DecoderConfig
from stretto.decoder.worker import DecoderWorker
from stretto.families.tiny.family import TINY
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import ChunkPolicy, DecoderLoad, DecodingTime, Pacer
from stretto.streams.layout import Segment
from tests.fakes import RecordedReply

NUM_FRAMES = 90


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec(TINY.codec, CHECKPOINT, "cpu", TINY.layout.num_codebooks)


def cut(num_frames: int, policy: ChunkPolicy, draw: random.Random) -> list[int]:
    """Return the sizes of an utterance's chunks with random frame times, clock and decoder speed."""
    now, load = 0.0, DecoderLoad(draw.random() / 4, DecodingTime(draw.random() / 8))
    pacer = Pacer(policy, lambda: load, lambda: now)
    sizes: list[int] = []
    for ready in range(1, num_frames + 1):
        now += draw.random() / 10
        while size := pacer.num_to_send(ready - sum(sizes)):
            sizes.append(size)
    return [*sizes, num_frames - sum(sizes)]


def speak(
    worker: DecoderWorker, name: str, codes: np.ndarray, sizes: list[int], form: OutputForm
) -> list[RecordedReply]:
    replies = []
    for index, part in enumerate(np.split(codes, np.cumsum(sizes)[:-1], axis=1)):
        replies.append(RecordedReply())
        chunk = Chunk(index, Segment.AUDIO, is_final=index == len(sizes) - 1)
        worker.push(name, chunk, part.astype(np.int32), replies[-1], form)
    return replies


def test_deterministic_decoding_is_byte_identical(codec: Codec) -> None:
    spec = codec.spec
    codes = np.random.default_rng(0).integers(0, spec.codebook_size, (spec.num_codebooks, NUM_FRAMES))
    policy = ChunkPolicy(4, 25, 0.0, spec.frame_rate, spec.right_frames, deterministic=True)
    form, heard = OutputForm(deterministic=True), set[bytes]()
    for run in range(4):
        draw = random.Random(run)
        worker = DecoderWorker(codec, DecoderConfig(max_batch=8))
        try:
            others = np.random.default_rng(run).integers(0, spec.codebook_size, (3 * run, *codes.shape))
            waiting = []
            for index, other in enumerate(others):  # cut alike, so that their windows have the same shapes
                waiting += speak(worker, f"other {index}", other, cut(NUM_FRAMES, policy, draw), OutputForm())
            replies = speak(worker, "mine", codes, cut(NUM_FRAMES, policy, draw), form)
            pcm = [reply.wait().pcm for reply in replies]
            for reply in waiting:
                reply.wait()
        finally:
            worker.stop()
        heard.add(np.concatenate([each for each in pcm if each is not None]).tobytes())
    assert len(heard) == 1


def test_non_deterministic_chunking_depends_on_timing(codec: Codec) -> None:
    policy = ChunkPolicy(4, 25, 0.0, codec.spec.frame_rate, codec.spec.right_frames)
    assert len({tuple(cut(NUM_FRAMES, policy, random.Random(run))) for run in range(4)}) > 1
