import itertools
import json
import sys

import pytest
import torch

from benchmarks import codecs as measure_codecs
from benchmarks.codecs import Long, Streaming, codecs, measure_dial, measure_long, measure_streaming
from benchmarks.decoder import random_codes
from lab.releases.random_codecs import MODELS, STATEFUL
from stretto.codecs.base import Stateful, Windowed
from stretto.codecs.tiny import codec as tiny
from tests.fakes import FakeCodec
from tests.tiers import by_night

pytestmark = pytest.mark.slow
STATEFUL_BY_NIGHT = sorted(STATEFUL.keys() - {"qwen3_12hz_small"})


@pytest.mark.parametrize("name", ["dac_24khz", *by_night(*sorted(set(MODELS) - {"dac_24khz"}))])
def test_error_grows_as_right_context_shrinks(name: str) -> None:
    [(_, _, codec)] = codecs([name], None, is_wide=False)
    exact = codec.spec
    rows = list(measure_dial(name, codec, random_codes(codec, 2, 30)))
    assert [row.right_frames for row in rows] == list(range(exact.min_right_frames, 11))
    errors = [row.relative_error for row in rows]
    assert all(more > less for more, less in itertools.pairwise(errors))
    assert errors[0] > 0.05
    assert rows[-1].max_difference <= 1e-5
    assert codec.spec == exact


def test_exactly_streaming_codec_is_measured_as_exact() -> None:
    codec = FakeCodec()
    row = measure_streaming("fake", "none", codec, torch.randint(8, (2, 2, 30)))
    assert row.max_difference < 1e-6
    assert (row.left_frames, row.right_frames, row.look_ahead_ms) == (1, 1, 40.0)
    assert row.times_real_time > 0
    assert codec.batches[-1] == (1, 1, 25, 1)


def test_understated_codec_context_is_detected() -> None:
    codec = FakeCodec()
    codec.spec = codec.spec.with_right_frames(0)
    assert isinstance(codec.spec.streaming, Stateful | Windowed)
    row = measure_streaming("fake", "none", codec, torch.randint(1, 8, (2, 2, 30)))
    assert row.max_difference > 1e-3


@pytest.mark.parametrize("name", ["tiny", *by_night("xcodec", "dac_24khz", *STATEFUL_BY_NIGHT)])
def test_codecs_do_not_drift_over_long_utterances(name: str) -> None:
    [(_, _, codec)] = codecs([name], None, is_wide=False)
    row = measure_long(name, codec, 300 / codec.spec.frame_rate)
    assert 0.02 < row.level < 0.6
    assert max(row.chunkings, row.streamed, row.streamed_from_float64, row.whole_from_float64) <= 1e-5


@pytest.mark.nightly
def test_long_decode_drift_is_separated_from_streaming_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, the spectra of the fake codec get less exact from hop to hop of a window."""
    exact = tiny.transform

    def drifting(source: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        spectra = exact(source, window)
        is_exact = window.dtype == torch.float64
        return spectra if is_exact else spectra * (1 + 1e-7 * torch.arange(spectra.shape[-2]))[:, None]

    [(_, _, codec)] = codecs(["tiny"], None, is_wide=False)
    monkeypatch.setattr(tiny, "transform", drifting)
    row = measure_long("tiny", codec, 24)
    assert row.whole_from_float64 > 1e-5 > row.streamed_from_float64
    assert row.streamed > 1e-5 > row.chunkings


def test_codec_benchmark_prints_a_table_for_long_utterances(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["measure_codecs", "espnet_dac", "--long", "0.5"])
    measure_codecs.main()
    lines = capsys.readouterr().out.splitlines()
    [row] = json.loads(lines[-1])["long"]
    assert set(row) == set(Long.__slots__)
    assert lines[2].split(" | ")[:2] == ["| espnet_dac", "0.5"]


def test_last_output_line_contains_all_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["measure_codecs", "dac_44khz", "--frames", "12", "--batch", "1"])
    measure_codecs.main()
    lines = capsys.readouterr().out.splitlines()
    record = json.loads(lines[-1])
    [row] = record["streaming"]
    assert set(row) == set(Streaming.__slots__)
    assert lines[2].split(" | ")[:3] == ["| dac_44khz", "random, narrow", "44100"]
    assert [each["right_frames"] for each in record["dial"]] == list(range(11))
