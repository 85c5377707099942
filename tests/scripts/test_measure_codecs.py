import itertools
import json
import sys

import pytest
import torch

from python_backend.codec.base import Stateful, Windowed
from scripts import measure_codecs
from scripts.codecs.random_weights import MODELS
from scripts.codecs.streaming import random_codes
from scripts.measure_codecs import Streaming, codecs, measure_dial, measure_streaming
from tests.fakes import FakeCodec


@pytest.mark.parametrize("name", MODELS)
def test_less_right_context_is_heard_the_more_the_less_there_is(name: str) -> None:
    [(_, _, codec)] = codecs([name], None, is_wide=False)
    exact = codec.spec
    rows = list(measure_dial(name, codec, random_codes(codec, 2, 30)))
    assert [row.right_frames for row in rows] == list(range(exact.least_right_frames, 11))
    errors = [row.relative_error for row in rows]
    assert all(more > less for more, less in itertools.pairwise(errors))
    assert errors[0] > 0.05
    assert rows[-1].max_difference <= 1e-5
    assert codec.spec == exact


def test_a_codec_that_streams_exactly_is_measured_as_exact() -> None:
    codec = FakeCodec()
    row = measure_streaming("fake", "none", codec, torch.randint(8, (2, 2, 30)))
    assert row.max_difference < 1e-6
    assert (row.left_frames, row.right_frames, row.look_ahead_ms) == (1, 1, 40.0)
    assert row.times_real_time > 0
    assert codec.batches[-1] == (1, 1, 25, 1)


def test_a_codec_whose_context_is_stated_too_small_is_found_out() -> None:
    codec = FakeCodec()
    codec.spec = codec.spec.with_right_frames(0)
    assert isinstance(codec.spec.streaming, Stateful | Windowed)
    row = measure_streaming("fake", "none", codec, torch.randint(1, 8, (2, 2, 30)))
    assert row.max_difference > 1e-3


def test_the_last_line_holds_what_the_tables_hold(
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
