"""The decoder benchmark, run on a codec that is small enough to check by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.decoder import (
    LiveLoad,
    LiveStreams,
    ProcessorTime,
    RealTime,
    main,
    measure_batching,
    measure_live,
    parse,
    random_codes,
)
from lab.releases.every_codec import make_codec
from stretto.config import DecoderConfig
from stretto.streams.chunking import ChunkPolicy
from stretto.triton_io.flow import FlowTable
from tests.fakes import FakeCodec
from tests.tiers import by_night

pytestmark = pytest.mark.slow

POLICY = ChunkPolicy(4, 25, frame_rate=25.0, held_frames=1)


def test_batching_benchmark_arms_decode_the_same_windows() -> None:
    codec = FakeCodec()
    figures = measure_batching(codec, DecoderConfig(max_batch=4), streams=8, frames=3, rounds=2)
    steady = [batch for batch in codec.batches if batch[1:] == (1, 3, 1)]
    assert sum(size for size, *_ in steady) == 2 * 3 * 2 * 8  # arms, rounds with the first, windows, streams
    assert {size for size, *_ in steady} >= {1, 4}
    assert (figures["streams"], figures["frames"]) == (8, 3)
    assert figures["speedup_over_one_at_a_time"] > 0
    assert figures["window_ms"] > 0


@pytest.mark.parametrize("stage_kind", [RealTime, ProcessorTime])
def test_live_streams_are_complete_and_on_time(tmp_path: Path, stage_kind: type[RealTime | ProcessorTime]) -> None:
    codec, table = FakeCodec(), FlowTable.create(0, directory=tmp_path)
    stage = stage_kind(codec, DecoderConfig())
    table.clock = stage.now
    live = LiveStreams(stage, codec.spec, np.ones((2, 7), np.int32), table)
    figures = measure_live(live, LiveLoad(4, 2.0, 50.0, stagger_s=0.2), POLICY)
    stage.close()
    assert (figures["failed"], figures["success"], figures["streams"]) == (0, 1.0, 4)
    if stage_kind is ProcessorTime:  # the other is at the mercy of the machine
        assert figures["chunk_frames_mean"] > 4
        assert figures["audio_ttfp_p50"] == pytest.approx(5 / 50, abs=0.03)
        assert figures["C50"] == 1.0
    assert table.num_active() == 0
    table.remove()


def test_decoder_benchmark_raises_chunk_errors() -> None:
    codec = FakeCodec(poison=1)
    with pytest.raises(ValueError, match="poisoned"):
        measure_batching(codec, DecoderConfig(), streams=2, frames=40, rounds=1)


def test_bundled_codec_is_the_default() -> None:
    arguments = parse([])
    codec = make_codec(arguments.codec, "cpu", True)
    codes = random_codes(codec, 1, 5)[0].numpy()
    assert codes.shape == (codec.spec.num_codebooks, 5)
    assert (arguments.streams, arguments.frames, arguments.live) == (64, 8, None)


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("--streams 2 --frames 2 --rounds 1", {"speedup_over_one_at_a_time", "speedup_cpu", "streams_real_time"}),
        *by_night(
            ("--live 1 --seconds 1 --clock processor", {"audio_ttfp_p50", "audio_underrun_p50", "itl_p50", "C50"})
        ),
    ],
)
def test_last_output_line_is_the_result(
    line: str, keys: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(parse([*line.split(), "--out", str(tmp_path / "decoder.jsonl")]))
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed.keys() >= keys
    assert json.loads((tmp_path / "decoder.jsonl").read_text()) == printed
