"""The arithmetic of docs/scale.md: tables equal the printed ones, and formulas equal calculations by hand."""

import math
from pathlib import Path

import pytest
import yaml

from benchmarks.sizing import (
    BACKBONES,
    BUSY,
    CODEC_OF,
    COUNTED,
    GATEWAY_STREAMS,
    GPUS,
    MOST_STREAMS,
    OUTSIDE_KBIT,
    SHARE_OF_TIME,
    Fleet,
    Prices,
    codec_of,
    fleet_table,
    share_of_time,
    streams_in_memory,
    streams_in_time,
    streams_of,
    streams_of_codec,
)
from stretto.machine.sizing import Backbone
from stretto_gateway.config import Limits
from stretto_gateway.encoding import CODECS as FORMATS
from tests.tiers import by_night

pytestmark = pytest.mark.together("sizing")  # with test_sizing.py, for the cache of `needs_of`
ROOT = Path(__file__).parents[2]
H100 = next(gpu for gpu in GPUS if "H100" in gpu.name)


def test_only_one_model_generates_no_audio() -> None:
    assert len(COUNTED) == len(BACKBONES) - 1


# A codec of published size takes several seconds to make. All tests of all of them run by night.
MADE_QUICKLY = [each for each in COUNTED if CODEC_OF[each.name.split()[0]] == "espnet_dac"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    [*MADE_QUICKLY, *by_night(*(each for each in COUNTED if each not in MADE_QUICKLY))],
    ids=lambda backbone: backbone.name,
)
def test_streams_per_gpu_shared_with_decoder_stay_within_limits(backbone: Backbone) -> None:
    for gpu in GPUS:
        streams = streams_of(backbone, gpu)
        codec, memory = codec_of(backbone), streams_in_memory(backbone, gpu)
        assert codec is not None
        decoded = streams_of_codec(codec, gpu, codec.steady_frames)
        assert 0 <= streams <= max(0, min(memory, streams_in_time(backbone, gpu), decoded))
        if 0 < streams < min(memory, MOST_STREAMS):
            assert share_of_time(backbone, gpu, streams) <= SHARE_OF_TIME < share_of_time(backbone, gpu, streams + 1)


def test_speech_hour_cost_is_shared_by_busy_streams() -> None:
    fleet = Fleet(10, 100)
    assert fleet.busy_streams == 750
    assert fleet.hour_of_speech(Prices(gpu=75.0, core=0.0)) == pytest.approx(1.0)
    assert fleet.hour_of_speech(Prices(gpu=0.0, core=1.0)) == pytest.approx(0.0127 / 0.6)
    assert fleet.outside_gbit(32.0) == pytest.approx(0.024)


def test_fleet_limits_and_bit_rates_match_the_gateway() -> None:
    assert Limits().max_active == GATEWAY_STREAMS
    rates = {name: (FORMATS[name][2] or 0) / 1e3 for name in ("mp3", "aac", "opus")}
    assert {name: rate for names, rate in OUTSIDE_KBIT.items() for name in names.split(", ") if name in rates} == rates


@pytest.mark.nightly
def test_kubernetes_scaling_threshold_matches_the_calculation() -> None:
    values = yaml.safe_load((ROOT / "deploy/helm/stretto/values.yaml").read_text())
    assert values["autoscaling"]["streams"] == math.floor(BUSY * streams_of(COUNTED[0], H100))


@pytest.mark.nightly
def test_document_contains_the_generated_table() -> None:
    assert fleet_table() in (ROOT / "docs/scale.md").read_text()
