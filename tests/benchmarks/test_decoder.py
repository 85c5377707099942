"""The decoder benchmark, run on a codec that is small enough to check by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.decoder import LiveLoad, LiveStreams, ProcessorTime, RealTime, main, measure_live, parse
from stretto.config import DecoderConfig
from stretto.streams.chunking import ChunkPolicy
from stretto.triton_io.flow import FlowTable
from tests.fakes import FakeCodec
from tests.tiers import by_night

pytestmark = pytest.mark.slow

POLICY = ChunkPolicy(4, 25, frame_rate=25.0, held_frames=1)


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
