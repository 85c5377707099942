"""The decoder's warm-up before its first chunk."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from stretto.codecs.base import Codec, Window
from stretto.config import DecoderConfig
from stretto.decoder.launching import HostLauncher, capture_shapes, warm_up
from stretto.decoder.windows import FrameWindow
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from tests.codecs.conftest import make_codec
from tests.fakes import FakeCodec, RecordedReply

SIZES = (1, 2, 4, 8, 16, 25)


FIRST, LATER = (0, 4, 1), [(1, size, 1) for size in SIZES]  # left, frames, right
SHAPES = sorted([FIRST, *LATER], key=sum)  # of FakeCodec, by their total number of frames


def test_warm_up_decodes_every_batch_size_and_shape() -> None:
    codec = FakeCodec()
    assert warm_up(HostLauncher(codec, "float32"), codec, ChunkPolicy(), max_batch=3, seconds=60.0) == 21
    beginning, *batches = codec.batches
    assert beginning == (1, 0, 1, 1)
    assert batches == [(batch, *shape) for batch in (1, 2, 3) for shape in SHAPES]


@pytest.mark.parametrize("make", [FakeCodec, make_codec])
def test_warm_up_does_not_change_decoding(make: type[Codec]) -> None:
    codec = make()
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 8, (1, codec.spec.num_codebooks, 30)))
    whole = Window(codes, 0, 0, torch.zeros(1, dtype=torch.int64), codec.initial_state(1))
    before = codec.decode(whole)[0]
    warm_up(HostLauncher(codec, "float32"), codec, ChunkPolicy(), max_batch=2, seconds=60.0)
    assert torch.equal(codec.decode(whole)[0], before)


class Capturing(HostLauncher):
    """Launcher with graphs that records requested captures and decodes."""

    has_graphs = True

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec, "float32")
        self.captured: list[tuple[int, int, int, int]] = []

    def capture(self, windows: Sequence[FrameWindow], is_first: bool = False) -> bool:
        window = windows[0]
        self.captured.append((len(windows), window.left, window.codes.shape[1], window.right))
        return True


@pytest.mark.parametrize("make", [FakeCodec, make_codec])
def test_usual_chunk_shapes_are_captured_per_power_of_two(make: type[Codec]) -> None:
    codec = make()
    launcher, spec = Capturing(codec), codec.spec
    assert capture_shapes(launcher, codec, ChunkPolicy(), max_batch=6) == len(launcher.captured)
    left, right = spec.left_frames, spec.right_frames
    early = [(before, before + size) for before, size in ((0, 4), (4, 4), (4, 8)) if before < left]
    frames = {*early, *((left, left + size) for size in SIZES)}
    expected = {(batch, before, length + right, right) for batch in (1, 2, 4, 8) for before, length in frames}
    assert set(launcher.captured) == expected
    sizes = [batch * length for batch, _, length, _ in launcher.captured]
    assert sizes == sorted(sizes, reverse=True), "later graphs reuse the memory of earlier ones"


def test_no_capture_or_decode_without_graphs() -> None:
    codec = FakeCodec()
    assert capture_shapes(HostLauncher(codec, "float32"), codec, ChunkPolicy(), max_batch=6) == 0
    assert codec.batches == []


def test_warm_up_stops_at_its_time_limit() -> None:
    codec, times = FakeCodec(), iter(range(100))
    assert warm_up(HostLauncher(codec, "float32"), codec, ChunkPolicy(), 16, 5.0, lambda: float(next(times))) == 4
    assert warm_up(HostLauncher(codec, "float32"), codec, ChunkPolicy(), 16, 0.0) == 0
    assert Counter(batch for batch, *_ in codec.batches) == {1: 5}


def test_wait_until_warm_returns_after_warm_up() -> None:
    codec = FakeCodec()
    codec.gate.clear()
    worker = DecoderWorker(codec, DecoderConfig(max_batch=2, warm_up_s=60.0))
    reply = RecordedReply()
    worker.push("u", Chunk(0, Segment.AUDIO, is_final=True), np.ones((2, 3), dtype=np.int32), reply)
    codec.gate.set()
    worker.wait_until_warm()
    assert len(codec.batches) >= 15
    reply.wait()
    assert codec.batches[15:] == [(1, 0, 3, 0)]
    worker.stop()


def test_warm_up_failure_is_raised() -> None:
    worker = DecoderWorker(FakeCodec(poison=0), DecoderConfig(warm_up_s=60.0))
    with pytest.raises(ValueError, match="poisoned"):
        worker.wait_until_warm()
