"""Sampling options given in Python, whose types have not been checked by a JSON reader."""

import math
from dataclasses import replace
from typing import Any

import pytest

from stretto.errors import InvalidRequest
from stretto.records.sampling import SamplingConfig, SegmentSampling

SEGMENT = SegmentSampling(temperature=0.8, min_rows=2, max_rows=40)
CONFIG = SamplingConfig(SEGMENT, SEGMENT, seed=0)
UNTIL = {"policy": "until_s"}
SECONDS = "options.guidance.until_s: expected a number of seconds in \\(0, 1000000\\], got"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": "hot"}, r"options.audio.temperature: expected a number in \[0.0, 10.0\], got 'hot'"),
        ({"temperature": True}, r"options.audio.temperature: expected a number in \[0.0, 10.0\], got True"),
        ({"temperature": math.nan}, r"options.audio.temperature: expected a number in \[0.0, 10.0\], got nan"),
        ({"temperature": 1e-9}, r"options.audio.temperature: expected 0 or a number in \[1e-06, 10.0\], got 1e-09"),
        ({"top_k": 2.5}, r"options.audio.top_k: expected an integer in \[0, 1048576\], got 2.5"),
        ({"top_k": -1}, r"options.audio.top_k: expected an integer in \[0, 1048576\], got -1"),
        ({"top_p": 0}, r"options.audio.top_p: expected a number in \[1e-06, 1.0\], got 0"),
        ({"top_p": 1.5}, r"options.audio.top_p: expected a number in \[1e-06, 1.0\], got 1.5"),
        ({"top_p": None}, r"options.audio.top_p: expected a number in \[1e-06, 1.0\], got None"),
        ({"min_rows": 41}, r"options.audio.min_rows: expected an integer in \[0, 40\], got 41"),
        ({"max_rows": "40"}, r"options.audio.max_rows: expected an integer in \[1, 1048576\], got '40'"),
    ],
)
def test_invalid_segment_parameters_are_refused_with_limit_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        replace(CONFIG, audio=replace(SEGMENT, **changes)).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, r"options.seed: expected an integer in \[0, 9223372036854775807\], got -1"),
        ({"seed": 1 << 63}, r"options.seed: expected an integer in .*, got 9223372036854775808"),
        ({"seed": 1.0}, r"options.seed: expected an integer in .*, got 1.0"),
        ({"guidance_scale": -0.5}, r"options.guidance_scale: expected a number in \[0.0, 100.0\], got -0.5"),
        ({"guidance_scale": math.inf}, r"options.guidance_scale: expected a number in \[0.0, 100.0\], got inf"),
        ({"script_temperature": 1e-7}, r"options.script_temperature: expected 0 or a number in \[1e-06, 10.0\]"),
        ({"ras_window": 7.0}, r"options.audio.ras_window: expected an integer in \[0, 512\], got 7.0"),
        ({"policy": "never"}, "options.guidance.policy: expected one of always, until_s, adaptive, got 'never'"),
        (UNTIL, "options.guidance.until_s: expected a number of seconds, because policy is 'until_s', got none"),
        ({**UNTIL, "guided_until_s": 0.0}, f"{SECONDS} 0.0"),
        (
            {**UNTIL, "guided_until_s": 1.7e308},
            f"{SECONDS} 1.7e",
        ),
        (
            {**UNTIL, "guided_until_s": math.nan},
            f"{SECONDS} nan",
        ),
        ({**UNTIL, "guided_until_s": "2"}, f"{SECONDS} '2'"),
        ({"guided_until_s": 2.0}, "options.guidance.until_s: expected no value under policy 'always', got 2.0"),
    ],
)
def test_invalid_reply_parameters_are_refused_with_limit_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        replace(CONFIG, **changes).check()


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
