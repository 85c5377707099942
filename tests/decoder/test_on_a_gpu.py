"""The decoder's thread on a fake GPU: batch durations, captured graphs, and memory of samples."""

import random
from collections.abc import Callable, Sequence
from ctypes import string_at
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stretto.codecs.base import Stateful, Window
from stretto.config import DecoderConfig
from stretto.decoder import launching
from stretto.decoder.chunk_queue import ChunkQueue, Counts, PendingChunk
from stretto.decoder.launching import CudaLauncher, Flight
from stretto.decoder.loop import DecodingLoop
from stretto.decoder.sessions import Sessions
from stretto.decoder.windows import FrameWindow
from stretto.errors import Cancelled, Closing
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import DecodingTime
from stretto.streams.layout import Segment
from tests.decoder import fake_cuda
from tests.decoder.fake_cuda import LOOK_S, FakeCuda
from tests.fakes import FakeCodec, RecordedReply
from tests.tiers import by_night

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
        self,
        cuda: FakeCuda,
        monkeypatch: pytest.MonkeyPatch,
        graphs: bool = False,
        sizes: tuple[int, int] = (4, 25),
        codec: FakeCodec | None = None,
        right_frames: int | None = None,
    ) -> None:
        codec = Slow(cuda) if codec is None else codec
        config = DecoderConfig(
            device="cpu",
            graphs=graphs,
            max_batch=64,
            first_frames=sizes[0],
            steady_frames=sizes[1],
            right_frames=right_frames,
        )
        self.launcher = CudaLauncher(codec, config)
        self.queue, self.counts = ChunkQueue(), Counts()
        self.sessions = Sessions(codec, 256, 60.0, lambda: 0.0)
        self.loop = DecodingLoop(codec, config, self.queue, self.counts, self.sessions, self.launcher)
        self.loop.clock = lambda: cuda.now_s

    def put(
        self,
        utterance: str,
        num_frames: int,
        form: OutputForm | None = None,
        on_device: Callable[[int], None] | None = None,
        num_reference_frames: int = 0,
        index: int = 0,
        is_final: bool = False,
    ) -> RecordedReply:
        """Push an utterance's chunk, by default its first, and return the reply."""
        reply, codes = RecordedReply(), np.ones((2, num_reference_frames + num_frames), np.int64)
        chunk = Chunk(index, Segment.AUDIO, num_reference_frames=num_reference_frames, is_final=is_final)
        self.queue.put(PendingChunk(utterance, chunk, codes, reply, form or OutputForm(), on_device))
        return reply

    def answer_all(self) -> None:
        """Run the loop until every chunk has its answer."""
        while self.queue.waiting() or self.loop.unanswered:
            self.loop.turn()


def test_a_batch_duration_excludes_the_previous_batch(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(cuda, monkeypatch)
    replies = [decoder.put(str(size), size) for size in (3, 5, 7)]  # three shapes: three batches
    decoder.answer_all()
    assert all(reply.wait().error is None for reply in replies)
    assert cuda.now_s == pytest.approx(3 * BATCH_S, abs=3 * LOOK_S)
    assert decoder.counts.to_dict()["decode_s"] == pytest.approx(3 * BATCH_S)
    assert decoder.loop.stopwatch.measured.batch_s == pytest.approx(BATCH_S)


def test_failing_all_utterances_ends_batches_in_flight(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(cuda, monkeypatch)
    replies = [decoder.put(str(size), size) for size in (3, 5)]
    decoder.loop.turn()
    assert decoder.loop.num_jobs == 1, "the other is in flight"
    decoder.loop.fail_all(RuntimeError("the device has failed"))
    assert all(isinstance(reply.wait().error, RuntimeError) for reply in replies)
    later = decoder.put("later", 3)
    decoder.answer_all()
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
    decoder.answer_all()
    assert in_flight.wait().pcm is not None
    assert isinstance(job.wait().error, Cancelled if ends == "abandoned" else Closing)
    assert decoder.counts.to_dict()["batches"] == 1


@pytest.mark.parametrize(
    ("sizes", "num_graphs"),
    [
        # Windows of 3, 4, 6 and (the first) 6 frames for 1 … 64 rows; 10, 18 and 27 frames up to 32, 16 and 8 rows.
        # In the lane of first chunks, those of 6 frames up to 8 rows.
        ((4, 25), 4 * 7 + 6 + 5 + 4 + 4),
        # Windows of 3, 4, 6 and (the first) 2 and 3 frames for 1 … 64 rows; 10 and 14 frames up to 32 and 16 rows.
        # In the lane of first chunks, those of 2 and 3 frames up to 16 rows.
        ((2, 12), 5 * 7 + 6 + 5 + 5 + 5),
    ],
)
def test_graphs_are_captured_before_the_first_chunk(
    sizes: tuple[int, int], num_graphs: int, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(cuda, monkeypatch, graphs=True, sizes=sizes)
    decoder.loop.enter()
    assert cuda.num_captured == num_graphs
    assert cuda.num_replayed == 0
    decoder.put("u", sizes[0] + 1)  # an utterance's first chunk: the frames and the one that follows
    decoder.loop.turn()
    assert (cuda.num_captured, cuda.num_replayed) == (num_graphs, 1)


class Causal(FakeCodec):
    """Codec without context, whose samples are the sums of code 0 up to their frame."""

    spec = replace(FakeCodec.spec, streaming=Stateful())

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        code = window.codes[:, 0].double()
        total = window.state + code.cumsum(1)
        return total.repeat_interleave(self.spec.samples_per_frame, dim=1).float(), total[:, -1:]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("num_last", [1, 5, 12, *by_night(2, 3, 4, *range(6, 12))])
def test_last_window_has_a_captured_shape_and_its_own_samples(
    num_last: int, graphs: bool, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Causal()
    decoder = Decoder(cuda, monkeypatch, graphs=graphs, sizes=(2, 12), codec=codec)
    shapes: list[int] = []
    launch = decoder.launcher.launch

    def watched(windows: Sequence[FrameWindow], *others: Any) -> Flight:
        shapes.append(windows[0].codes.shape[1])
        return launch(windows, *others)

    monkeypatch.setattr(decoder.launcher, "launch", watched)
    first = decoder.put("u", 2)
    decoder.answer_all()
    last = decoder.put("u", num_last, index=1, is_final=True)
    decoder.answer_all()
    assert shapes == [2, next(size for size in (1, 2, 4, 8, 12) if size >= num_last) if graphs else num_last]
    samples = [reply.wait().pcm for reply in (first, last)]
    assert [len(each) for each in samples] == [2 * 4, num_last * 4]
    assert np.concatenate(samples).tolist() == [float(frame) for frame in range(1, 3 + num_last) for _ in range(4)]


def test_reduced_right_context_is_not_padded(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec itself needs later frames, which padding would replace."""
    decoder = Decoder(cuda, monkeypatch, graphs=True, codec=Causal(), right_frames=0)
    reply = decoder.put("u", 3, is_final=True)
    decoder.answer_all()
    assert reply.wait().pcm is not None
    assert not decoder.sessions.last_sizes


def test_a_chunk_is_launched_while_the_only_other_batch_is_computed(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(cuda, monkeypatch)
    decoder.put("early", 3)
    decoder.loop.turn()
    assert decoder.counts.to_dict()["batches"] == 0, "in flight"
    decoder.put("late", 5)
    decoder.loop.turn()
    assert decoder.loop.num_jobs == 0
    assert decoder.counts.to_dict()["batches"] == 0, "both are in flight, and the first one is not awaited"
    decoder.answer_all()
    assert decoder.counts.to_dict()["batches"] == 2


class Busy(Causal):
    """Codec that keeps the device busy for a second per frame, and knows the stream on which it decodes."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda
        self.streams: list[fake_cuda.FakeStream] = []

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        self.streams.append(self._cuda.current)
        self._cuda.work(float(window.codes.shape[2]))
        return super().decode(window)


def test_first_chunks_are_decoded_beside_a_long_batch(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Busy(cuda)
    decoder = Decoder(cuda, monkeypatch, graphs=True, codec=codec)
    decoder.put("early", 1)
    decoder.answer_all()
    long = decoder.put("early", 24, index=1)
    decoder.loop.turn()
    begun = cuda.now_s
    late = decoder.put("late", 1)
    while late.pcm is None:
        decoder.loop.turn()
    assert cuda.now_s - begun < 1.1, "it does not wait for 24 s"
    assert long.pcm is None
    more = decoder.put("late", 2, index=1)
    decoder.answer_all()
    assert np.concatenate([each.wait().pcm for each in (late, more)]).tolist() == [1] * 4 + [2] * 4 + [3] * 4
    first, steady = codec.streams[0], codec.streams[1]
    assert first.priority < steady.priority
    assert codec.streams == [first, steady, first, steady]


def test_at_most_one_batch_of_first_chunks_is_in_flight(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(cuda, monkeypatch, graphs=True, codec=Busy(cuda))
    for num_frames in (1, 2, 4):
        decoder.put(str(num_frames), num_frames)
        decoder.loop.turn()
    assert decoder.loop.num_jobs == 2
    decoder.answer_all()
    assert decoder.counts.to_dict()["batches"] == 3


class Recorder:
    """Backend whose graphs run their step again."""

    def __init__(self, stream: fake_cuda.FakeStream) -> None:
        pass

    def prepare(self, step: Callable[[], None]) -> None:
        step()

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        return step

    def release(self) -> None:
        raise AssertionError("no memory is missing")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "CudaGraphs", Recorder)


@pytest.mark.usefixtures("graphs")
def test_rows_of_closed_utterances_serve_others(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Utterances open, go on and close in random order; their samples continue their own states."""
    decoder = Decoder(cuda, monkeypatch, graphs=True, codec=Causal(), sizes=(1, 4))
    decoder.loop.enter()
    table = decoder.launcher._table
    assert table is not None
    num_rows = table.num_free
    order = random.Random(0)
    sent = dict[str, list[int]]()  # frames of the chunks of open utterances
    replies = list[tuple[RecordedReply, int, int]]()  # and the frames before each chunk, and in it
    for number in range(40):
        sent[str(number)] = []
        for name in order.sample(sorted(sent), min(3, len(sent))):
            sizes = sent[name]
            num_frames = order.choice([1, 2, 4])
            is_final = len(sizes) == 4
            reply = decoder.put(name, num_frames, index=len(sizes), is_final=is_final)
            replies.append((reply, sum(sizes), num_frames))
            sizes.append(num_frames)
            if is_final:
                del sent[name]
            decoder.loop.turn()
        if number % 3 == 0:
            decoder.answer_all()
            assert table.num_free == num_rows - len(decoder.sessions), "a row for each open utterance"
    decoder.answer_all()
    for reply, num_before, num_frames in replies:
        pcm = reply.wait().pcm
        assert pcm is not None
        assert pcm[::4].tolist() == [float(num_before + frame) for frame in range(1, num_frames + 1)]
    for name in sent:
        decoder.sessions.close(name)
    replies.clear()
    assert table.num_free == num_rows


COPYING = ("copy_", "_to_copy", "cat", "clone", "index_select", "index_copy_")


class Operators(TorchDispatchMode):
    """Counter of operators that copy."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += func._overloadpacket.__name__ in COPYING
        return func(*args, **(kwargs or {}))


class InRows(Causal):
    """Codec that writes its states to their rows."""

    spec = replace(Causal.spec, reads_rows=True)

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        assert window.rows is not None
        return window.codes[:, 0].float().repeat_interleave(self.spec.samples_per_frame, dim=1), window.state


@pytest.mark.usefixtures("graphs")
def test_a_batch_copies_no_states(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around a graph there are copies of its codes, frame indices and rows, and of samples, for any batch."""
    launcher = Decoder(cuda, monkeypatch, graphs=True, codec=InRows()).launcher
    window = FrameWindow(np.ones((2, 1), np.int64), 0, 0, 0)
    counts = list[int]()
    for size in (1, 16):
        states = [launcher.initial_state()] * size
        assert launcher.capture([window] * size)
        with Operators() as operators:
            launcher.launch([window] * size, states)
        counts.append(operators.num)
    assert counts == [6, 6]


@pytest.mark.parametrize(("window_s", "expected"), [(0.1, [8, 2, 1]), (0.01, [11])])
def test_batches_are_split_if_padding_takes_longer_than_another_batch(
    window_s: float, expected: list[int], cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(cuda, monkeypatch, graphs=True, codec=Causal())
    sizes: list[int] = []
    launch = decoder.launcher.launch

    def watched(windows: Sequence[FrameWindow], *others: Any) -> Flight:
        sizes.append(len(windows))
        return launch(windows, *others)

    monkeypatch.setattr(decoder.launcher, "launch", watched)
    monkeypatch.setattr(decoder.launcher, "batch_s", 10.0)
    decoder.loop.stopwatch.measured = DecodingTime(0.05, 0.0, window_s / 2)
    for index in range(11):
        decoder.put(str(index), 2)
    decoder.loop.stopwatch.record = lambda num_frames, spent_s: None
    decoder.answer_all()
    assert sizes == expected


@pytest.mark.parametrize(
    ("spare_s", "num_windows"),
    [
        (0.0, 12),  # a client has no audio yet: 12 ms
        (0.010, 12),
        (0.040, 20),  # half of the time until the first one underruns
        (9.0, 64),
    ],
)
def test_a_batch_is_no_longer_than_the_most_urgent_client_can_wait(
    spare_s: float, num_windows: int, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(cuda, monkeypatch, codec=Causal())
    monkeypatch.setattr(decoder.sessions, "spare_s", lambda: spare_s)
    decoder.loop.stopwatch.measured = DecodingTime(0.0, 0.0, 0.001)
    for index in range(64):
        decoder.put(str(index), 1)
    decoder.loop.turn()
    assert 64 - decoder.loop.num_jobs == num_windows


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
    decoder.answer_all()
    sent = [reply.wait().pcm for reply in replies]
    assert [len(pcm) for pcm in sent if pcm is not None] == [16, 16]
    assert read == ([pcm.tobytes() for pcm in sent if pcm is not None] if lies_there else [])
