"""Underruns of many live streams on a decoder whose decode times follow a formula."""

from pathlib import Path

import pytest

from stretto.codecs.base import CodecSpec, Stateful, Windowed
from stretto.streams.chunking import ChunkPolicy
from stretto.triton_io.flow import FlowTable
from stretto_client.capacity.traces import Trace, underrun_s
from tests.decoder import live_streams
from tests.decoder.live_streams import LiveLoad, TimedCodec, TimedStage

Kind = tuple[CodecSpec, float, float]  # the first fields of a `TimedCodec`
# Processor time of the bundled codec, of a DAC with few channels and of a wide codec: on one core of 2.5 GHz, about.
BUNDLED = CodecSpec("bundled", 16_000, 640, 7, 256, Windowed(8, 1)), 0.00022, 0.002
DAC = CodecSpec("dac", 16_000, 320, 12, 1024, Windowed(10, 10)), 0.00005, 0.002
SLOW = CodecSpec("slow", 24_000, 1920, 32, 256, Stateful()), 0.00385, 0.0052


def play(
    folder: Path, kind: Kind, load: LiveLoad, first_frames: int, *before: LiveLoad, steady_frames: int = 25
) -> list[Trace]:
    """Play loads in simulated time, without randomness, and return the traces of the clients of `load`."""
    codec = TimedCodec(*kind)
    spec = codec.spec
    policy = ChunkPolicy(first_frames, steady_frames, frame_rate=spec.frame_rate, held_frames=spec.right_frames)
    stage = TimedStage(codec)
    table = FlowTable.create(0, directory=folder)
    table.clock = stage.now
    for number, earlier in enumerate((LiveLoad(2, 2.0, 2 * spec.frame_rate), *before)):
        live_streams.play(f"earlier {number}", earlier, policy, stage, table)
    traces = live_streams.play("measured", load, policy, stage, table)
    table.remove()
    return traces


@pytest.mark.parametrize("stagger_s", [1.0, 3.0])
@pytest.mark.parametrize("streams", [1, 8, 32])
@pytest.mark.parametrize(("kind", "first_frames"), [(BUNDLED, 4), (DAC, 8)], ids=["bundled", "dac"])
def test_32_streams_of_a_small_codec_have_no_underruns(
    tmp_path: Path, kind: Kind, first_frames: int, streams: int, stagger_s: float
) -> None:
    """50 frames per second are twice real time for the bundled codec, and real time for DAC."""
    traces = play(tmp_path, kind, LiveLoad(streams, 6.0, 50.0, stagger_s), first_frames)
    assert len(traces) == streams
    assert all(trace.error is None and sum(trace.durations) == pytest.approx(6.0) for trace in traces)
    assert max(map(underrun_s, traces)) <= 1e-3


@pytest.mark.parametrize(("kind", "first_frames", "expected_s"), [(BUNDLED, 4, 5 / 50), (DAC, 8, 18 / 50)])
def test_single_stream_starts_with_its_first_frames(
    tmp_path: Path, kind: Kind, first_frames: int, expected_s: float
) -> None:
    [trace] = play(tmp_path, kind, LiveLoad(1, 2.0, 50.0), first_frames)
    assert trace.arrivals[0] - trace.sent <= expected_s + 0.005


CROWD = LiveLoad(16, 8.0, 66.0, stagger_s=0.0)  # at once; they keep the decoder 80 % busy


@pytest.mark.parametrize("before", [(), (CROWD,), (CROWD, CROWD)])
def test_a_crowd_begins_with_small_chunks_and_hardly_underruns(tmp_path: Path, before: tuple[LiveLoad, ...]) -> None:
    """16 first chunks of 12 frames would take 0.83 s."""
    traces = play(tmp_path, SLOW, CROWD, 1, *before, steady_frames=12)
    assert max(trace.durations[0] for trace in traces) <= 6 / 12.5
    assert max(map(underrun_s, traces)) <= 0.05


def test_a_stream_after_a_crowd_begins_with_a_small_chunk(tmp_path: Path) -> None:
    [trace] = play(tmp_path, SLOW, LiveLoad(1, 4.0, 66.0), 1, CROWD, steady_frames=12)
    assert trace.durations[0] <= 6 / 12.5
    assert underrun_s(trace) <= 1e-3
