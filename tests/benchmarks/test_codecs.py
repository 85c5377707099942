import pytest
import torch

from benchmarks.codecs import codecs, measure_long, measure_streaming
from lab.releases.random_codecs import STATEFUL
from tests.fakes import FakeCodec
from tests.tiers import by_night

pytestmark = pytest.mark.slow
STATEFUL_BY_NIGHT = sorted(STATEFUL.keys() - {"qwen3_12hz_small"})


def test_exactly_streaming_codec_is_measured_as_exact() -> None:
    codec = FakeCodec()
    row = measure_streaming("fake", "none", codec, torch.randint(8, (2, 2, 30)))
    assert row.max_difference < 1e-6
    assert (row.left_frames, row.right_frames, row.look_ahead_ms) == (1, 1, 40.0)
    assert row.times_real_time > 0
    assert codec.batches[-1] == (1, 1, 25, 1)


@pytest.mark.parametrize("name", ["tiny", *by_night("xcodec", "dac_24khz", *STATEFUL_BY_NIGHT)])
def test_codecs_do_not_drift_over_long_utterances(name: str) -> None:
    [(_, _, codec)] = codecs([name], None, is_wide=False)
    row = measure_long(name, codec, 300 / codec.spec.frame_rate)
    assert 0.02 < row.level < 0.6
    assert max(row.chunkings, row.streamed, row.streamed_from_float64, row.whole_from_float64) <= 1e-5
