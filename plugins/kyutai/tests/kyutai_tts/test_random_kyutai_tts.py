"""Random releases of the published sizes, which benchmarks serve, have the stated numbers of parameters."""

from math import prod
from typing import Any

import pytest

from plugins.kyutai.lab.random_kyutai_tts import CONFIG, LARGE, SIZES, lm_shapes


@pytest.mark.parametrize(("size", "base", "billions"), [("0.75b", CONFIG, 0.82), ("1.6b", LARGE, 1.83)])
def test_kyutai_tts_release_has_the_stated_parameter_count(size: str, base: dict[str, Any], billions: float) -> None:
    tensors = lm_shapes({**base, **SIZES[size]})
    assert round(sum(map(prod, tensors.values())) / 1e9, 2) == billions
    assert size != "1.6b" or len(tensors) == 418  # as published
