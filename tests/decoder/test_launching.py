"""Launchers that decode immediately, in another precision, or with a batch in flight."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stretto.codecs.base import Window
from stretto.config import DecoderConfig
from stretto.decoder import worker as worker_module
from stretto.decoder.launching import CudaLauncher, Flight, HostLauncher, make_launcher, stack
from stretto.decoder.windows import FrameWindow
from stretto.decoder.worker import DecoderWorker
from stretto.decoding.convolutions import convolutions_in
from stretto.decoding.states import State
from stretto.records.chunk import Chunk
from stretto.streams.layout import Segment
from tests.codecs.conftest import make_codec
from tests.decoder import fake_cuda
from tests.fakes import FakeCodec, RecordedReply


def windows(frames: int = 12) -> list[FrameWindow]:
    codes = np.random.default_rng(0).integers(0, 16, (2, 3, frames))
    return [FrameWindow(each, 0, 0, 0) for each in codes]


def test_host_launcher_matches_the_codec() -> None:
    codec = make_codec()
    launcher = make_launcher(codec, DecoderConfig())
    assert isinstance(launcher, HostLauncher)
    before = codec.initial_state(2).split(1)
    flight = launcher.launch(windows(), before)
    pcm, states = codec.decode(stack(windows(), before))
    assert np.array_equal(flight.pcm(), pcm.numpy())
    assert torch.equal(stack(windows(), flight.states).state, states)


@pytest.mark.parametrize("device", ["cpu", "fake GPU"])
@pytest.mark.parametrize("convolutions", DecoderConfig.CONVOLUTIONS)
def test_decoding_uses_the_configured_convolutions(
    convolutions: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(1, 16, 50), torch.randn(16, 16, 3)

    class Convolving(FakeCodec):
        def decode(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
            return F.conv1d(x, weight)[:, 0], window.state

    codec, config = Convolving(), DecoderConfig(convolutions=convolutions, graphs=False)
    one = FrameWindow(np.ones((2, 3), np.int64), 0, 0, 0)
    if device == "cpu":
        launcher = make_launcher(codec, config)
    else:
        fake_cuda.install(monkeypatch)
        launcher = CudaLauncher(codec, config)
    with convolutions_in(convolutions):
        expected = F.conv1d(x, weight)[:, 0].numpy()
    assert np.array_equal(launcher.launch([one], [codec.initial_state(1)]).pcm(), expected)
    assert (convolutions == "float32") == np.array_equal(expected, F.conv1d(x, weight)[:, 0].numpy())


@pytest.mark.parametrize("wrong", [{"convolutions": "int8"}, {"max_batch": 0}])
def test_invalid_decoder_config_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecoderConfig(**wrong)


def test_onnxruntime_uses_the_host_launcher_on_any_device() -> None:
    launcher = make_launcher(make_codec(), DecoderConfig(runtime="onnx", device="cuda:0"))
    assert isinstance(launcher, HostLauncher)


def test_launch_thread_enters_first_and_creates_all_states() -> None:
    """On a GPU, the thread's own stream orders states and decodes.

    A state made on another stream could be read too early.
    """
    seen: list[tuple[str, int]] = []

    class Watched(FakeCodec):
        def initial_state(self, batch: int) -> torch.Tensor:
            seen.append(("state", threading.get_ident()))
            return super().initial_state(batch)

    class Watching(HostLauncher):
        def enter(self) -> None:
            seen.append(("enter", threading.get_ident()))

        def launch(self, windows: Sequence[FrameWindow], states: Sequence[State], is_first: bool = False) -> Flight:
            seen.append(("launch", threading.get_ident()))
            return super().launch(windows, states, is_first)

    codec = Watched()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "make_launcher", lambda codec, config: Watching(codec, config.convolutions))
        worker = DecoderWorker(codec, DecoderConfig())
    reply = RecordedReply(None, ("a", 0))
    worker.push("a", Chunk(0, Segment.AUDIO, is_final=True), np.array([[1, 2], [1, 2]], np.int32), reply)
    worker.stop()
    assert [what for what, _ in seen] == ["enter", "state", "launch"]
    assert len({thread for _, thread in seen}) == 1
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_gpu_launcher_sets_its_stream_after_weights_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[object] = []
    stream = object()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: current.append("weights have arrived"))
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    launcher = make_launcher(make_codec(), DecoderConfig(device="cuda:0", graphs=False))
    assert current == []
    launcher.enter()
    assert current == ["weights have arrived", stream]


@pytest.mark.parametrize("device", ["cuda:1", "cuda"])
@pytest.mark.parametrize(("memory_mb", "fraction"), [(0, None), (4096, 0.5), (1 << 20, 1.0)])
def test_memory_on_a_gpu_is_limited_before_anything_is_decoded(
    memory_mb: int, fraction: float | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[float, int | None]] = []  # torch refuses a device without a number, but not None
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: object())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 << 30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: limits.append(limit))
    make_launcher(make_codec(), DecoderConfig(device=device, graphs=False, memory_mb=memory_mb))
    assert limits == ([] if fraction is None else [(fraction, 1 if device == "cuda:1" else None)])


def test_launcher_waits_for_the_stream_that_copied_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if a codec's library changes the current stream."""
    cuda = fake_cuda.install(monkeypatch)

    class Straying(FakeCodec):
        def decode(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
            cuda.set_stream(fake_cuda.FakeStream("astray"))
            return super().decode(window)

    launcher = CudaLauncher(Straying(), DecoderConfig(device="cpu", graphs=False))
    window = FrameWindow(np.ones((2, 3), np.int64), 0, 0, 0)
    launcher.launch([window], [torch.zeros(1, 1, dtype=torch.float64)])
    *_, done = cuda.events
    assert done.stream is not None
    assert done.stream.name == "astray"
