"""The decoder's thread on a fake GPU: batch durations, captured graphs, and memory of samples."""

from collections.abc import Callable
from ctypes import string_at

import numpy as np
import pytest
from torch import Tensor

from stretto.codecs.base import Window
from stretto.config import DecoderConfig
from stretto.decoder import loop as loop_module
from stretto.decoder.chunk_queue import ChunkQueue, Counts, PendingChunk
from stretto.decoder.graphs import MAX_GRAPHS
from stretto.decoder.launching import CudaLauncher
from stretto.decoder.loop import DecodingLoop
from stretto.decoder.sessions import Sessions
from stretto.errors import Cancelled, Closing
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment
from tests.decoder import fake_cuda
from tests.decoder.fake_cuda import FakeCuda
from tests.fakes import FakeCodec, RecordedReply

BATCH_S = 1.0


class Slow(FakeCodec):
    """Codec that keeps the device busy for BATCH_S."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        self._cuda.work(BATCH_S)
        return super().decode(window)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch)


class Decoder:
    """Decoder loop that the test runs turn by turn, with all its parts."""

    def __init__(
        self, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, graphs: bool = False, sizes: tuple[int, int] = (4, 25)
    ) -> None:
        codec = Slow(cuda)
        config = DecoderConfig(device="cpu", graphs=graphs, max_batch=64, first_frames=sizes[0], steady_frames=sizes[1])
        self.launcher = CudaLauncher(codec, config)
        monkeypatch.setattr(loop_module, "make_launcher", lambda codec, config: self.launcher)
        self.queue, self.counts = ChunkQueue(), Counts()
        sessions = Sessions(codec, 256, 60.0, lambda: 0.0)
        self.loop = DecodingLoop(codec, config, self.queue, self.counts, sessions)
        self.loop.stopwatch = lambda: cuda.now_s

    def put(
        self,
        utterance: str,
        num_frames: int,
        form: OutputForm | None = None,
        on_device: Callable[[int], None] | None = None,
        num_reference_frames: int = 0,
    ) -> RecordedReply:
        """Push an utterance's first chunk and return the reply."""
        reply, codes = RecordedReply(), np.ones((2, num_reference_frames + num_frames), np.int64)
        chunk = Chunk(0, Segment.AUDIO, num_reference_frames=num_reference_frames)
        self.queue.put(PendingChunk(utterance, chunk, codes, reply, form or OutputForm(), on_device))
        return reply


def test_a_batch_duration_excludes_the_previous_batch(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(cuda, monkeypatch)
    replies = [decoder.put(str(size), size) for size in (3, 5, 7)]  # three shapes: three batches
    for _ in range(3):
        decoder.loop.turn()
    assert all(reply.wait().error is None for reply in replies)
    assert cuda.now_s == 3 * BATCH_S
    assert decoder.counts.to_dict()["decode_s"] == pytest.approx(3 * BATCH_S)
    assert decoder.loop.times.measured.batch_s == pytest.approx(BATCH_S)


def test_failing_all_utterances_ends_batches_in_flight(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(cuda, monkeypatch)
    replies = [decoder.put(str(size), size) for size in (3, 5)]
    decoder.loop.turn()
    assert decoder.loop.num_jobs == 1, "the other is in flight"
    decoder.loop.fail_all(RuntimeError("the device has failed"))
    assert all(isinstance(reply.wait().error, RuntimeError) for reply in replies)
    later = decoder.put("later", 3)
    decoder.loop.turn()
    assert later.wait().error is None


@pytest.mark.parametrize("ends", ["abandoned", "gives up"])
def test_ended_utterances_are_not_decoded(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """The batch in flight is still answered."""
    decoder = Decoder(cuda, monkeypatch)
    in_flight, job = (decoder.put(str(size), size) for size in (3, 5))
    decoder.loop.turn()
    assert decoder.loop.num_jobs == 1
    if ends == "abandoned":
        decoder.queue.abandon("5")
    else:
        decoder.loop.fails_pending = True
    decoder.loop.turn()
    assert in_flight.wait().pcm is not None
    assert isinstance(job.wait().error, Cancelled if ends == "abandoned" else Closing)
    assert decoder.counts.to_dict()["batches"] == 1


@pytest.mark.parametrize(
    ("sizes", "num_graphs"),
    [
        # Windows of 3, 4, 6 and (the first) 6 frames for 1 … 64 rows; 10, 18 and 27 frames up to 32, 16 and 8 rows.
        ((4, 25), 4 * 7 + 6 + 5 + 4),
        # Windows of 3, 4, 6 and (the first) 2 and 3 frames for 1 … 64 rows; 10 and 14 frames up to 32 and 16 rows.
        ((2, 12), 5 * 7 + 6 + 5),
    ],
)
def test_graphs_are_captured_before_the_first_chunk(
    sizes: tuple[int, int], num_graphs: int, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(cuda, monkeypatch, graphs=True, sizes=sizes)
    decoder.loop.enter()
    assert cuda.num_captured == num_graphs < MAX_GRAPHS
    assert cuda.num_replayed == 0
    decoder.put("u", sizes[0] + 1)  # an utterance's first chunk: the frames and the one that follows
    decoder.loop.turn()
    assert (cuda.num_captured, cuda.num_replayed) == (num_graphs, 1)


@pytest.mark.parametrize(
    ("form", "num_reference", "lies_there"),
    [(OutputForm(), 0, True), (OutputForm("pcm_s16le"), 0, False), (OutputForm(), 2, False)],
)
def test_unconverted_samples_can_be_read_on_the_device(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, form: OutputForm, num_reference: int, lies_there: bool
) -> None:
    """The last frame of a voice reference is decoded with the reply's first frames, but is not sent."""
    decoder = Decoder(cuda, monkeypatch)
    read: list[bytes] = []

    def see(address: int) -> None:
        read.append(string_at(address, 64))

    replies = [decoder.put(name, 5, form, see, num_reference) for name in "ab"]
    decoder.loop.turn()
    while decoder.loop.unanswered:
        decoder.loop.turn()
    sent = [reply.wait().pcm for reply in replies]
    assert [len(pcm) for pcm in sent if pcm is not None] == [16, 16]
    assert read == ([pcm.tobytes() for pcm in sent if pcm is not None] if lies_there else [])
