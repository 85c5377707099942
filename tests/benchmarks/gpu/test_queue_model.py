"""The decoder's scheduling on a virtual GPU, with requests at random times from a fixed seed."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.queue_model import SPEC, Gpu, Played, RandomLoad, main, parse, play
from stretto.streams.chunking import ChunkPolicy
from stretto_client.capacity.traces import underrun_s
from tests.tiers import by_night

POLICY = ChunkPolicy(1, 12, frame_rate=SPEC.frame_rate)
FRAMES_55_S = 4.4


def replies_of(rate: float, reply_s: float, step_s: float, streams: int = 300) -> list[Played]:
    """Play a load of requests at `rate` in a second, without its first quarter, in which replies accumulate."""
    return play(Gpu(), RandomLoad(streams, reply_s, 1 / step_s, rate=rate), POLICY)[streams // 4 :]


@pytest.mark.parametrize(("reply_s", "step_s"), [(FRAMES_55_S, 0.012), *by_night((8.0, 0.020))])
def test_first_chunks_of_20_requests_a_second_are_early_and_no_player_waits(reply_s: float, step_s: float) -> None:
    replies = replies_of(20.0, reply_s, step_s)
    assert all(reply.trace.succeeded for reply in replies)
    assert all(reply.trace.audio_s == pytest.approx(reply_s) for reply in replies)
    assert max(underrun_s(reply.trace) for reply in replies) == 0.0
    assert np.percentile([reply.wait_s for reply in replies], 95) <= 0.030
    assert np.mean([reply.first_frames for reply in replies]) <= 2.5


def test_a_single_reply_begins_with_one_frame_in_the_time_of_one_batch() -> None:
    replies = replies_of(0.1, FRAMES_55_S, 0.006, streams=8)
    assert {reply.first_frames for reply in replies} == {1}
    assert max(reply.wait_s for reply in replies) <= 0.0044 + 0.00026 + 0.0005


def test_the_benchmark_writes_a_line_for_each_load(tmp_path: Path) -> None:
    main(parse(["--seconds", "2", "--out", str(tmp_path / "lines.jsonl")]))
    lines = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all('"first_wait_p95"' in line for line in lines)
