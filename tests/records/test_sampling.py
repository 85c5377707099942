"""Sampling options given in Python, whose types have not been checked by a JSON reader."""

import math
from dataclasses import replace
from typing import Any

import pytest

from stretto.errors import InvalidRequest
from stretto.records import sampling
from stretto.records.sampling import CodeSampling, LatentSampling, SamplingConfig, SegmentSampling

SEGMENT = SegmentSampling(temperature=0.8, min_rows=2, max_rows=40)
CONFIG = SamplingConfig(SEGMENT, SEGMENT, seed=0)
PARTS = {"": CONFIG, "audio.": SEGMENT, "depth.": CodeSampling(0.5), "latents.": LatentSampling(4)}


@pytest.mark.parametrize("path", PARTS)
def test_every_value_outside_the_range_of_its_option_is_refused(path: str) -> None:
    part = PARTS[path]
    ranges = sampling._ranges(type(part))
    assert len(ranges) >= 3
    for name, expected, may_be_none in ranges:
        lowest = expected.gt if expected.ge is None else expected.ge - 1
        wrong = [lowest, expected.le + 1, math.nan, math.inf, "1", True, *([] if may_be_none else [None])]
        for value in [*wrong, *([1.5] if expected.kind == "an integer" else [])]:
            changed = replace(part, **{name: value})
            config = replace(CONFIG, **{path[:-1]: changed}) if path else changed
            with pytest.raises(InvalidRequest) as caught:
                config.check()
            where = sampling.option_name(path + name)
            assert str(caught.value) == f"options.{where}: expected {expected.description}, got {value!r}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": replace(SEGMENT, temperature=1e-9)}, "audio.temperature: expected 0 or a number in [1e-06, 10.0]"),
        ({"depth": CodeSampling(1e-9)}, "depth.temperature: expected 0 or a number in [1e-06, 10.0], got 1e-09"),
        ({"script_temperature": 1e-7}, "script_temperature: expected 0 or a number in [1e-06, 10.0], got 1e-07"),
        ({"text": replace(SEGMENT, min_rows=41)}, "text.min_rows: expected an integer in [0, 40], got 41"),
        ({"policy": "never"}, "guidance.policy: expected one of always, until_s, adaptive, got 'never'"),
        ({"policy": "until_s"}, "guidance.until_s: expected a number of seconds, because policy is 'until_s', got"),
        ({"guided_until_s": 2.0}, "guidance.until_s: expected no value under policy 'always', got 2.0"),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        replace(CONFIG, **changes).check()
    assert str(caught.value).startswith(f"options.{message}")


@pytest.mark.parametrize("frames", [(2, 1), (-1,), (0,) * 5, (True,), (1.0,), ("1",), [0], 0, ((1 << 20) + 1,)])
def test_redraws_are_few_frames_in_ascending_order(frames: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        replace(CONFIG, redraw_from=frames).check()
    expected = "options.redraw_from: expected at most 4 integers in [0, 1048576], in ascending order, got "
    assert str(caught.value).startswith(expected)
    for fits in ((), (0, 0, 7, 1 << 20)):
        replace(CONFIG, redraw_from=fits).check()


def test_range_limits_are_inclusive() -> None:
    for temperature, top_k, top_p, rows in ((0, 0, 1, 1), (1e-6, 1 << 20, 1e-6, 1 << 20), (10.0, 1, 0.5, 7)):
        segment = SegmentSampling(temperature, top_k, top_p, rows, rows)
        for seed in (0, (1 << 32) - 1, 1 << 32, (1 << 63) - 1):
            config = SamplingConfig(segment, segment, guidance_scale=0.0, seed=seed)
            replace(config, policy="until_s", guided_until_s=1e6).check()


def test_missing_seed_is_sampled_and_given_seed_is_kept() -> None:
    drawn = [replace(CONFIG, seed=None).with_seed().seed for _ in range(8)]
    assert all(seed is not None and 0 <= seed < 1 << 32 for seed in drawn)
    assert len(set(drawn)) > 1
    assert replace(CONFIG, seed=1 << 40).with_seed().seed == 1 << 40
