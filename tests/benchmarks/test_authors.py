"""The benchmark against authors' code: dimensions of the releases, and the files that the packages read."""

from dataclasses import replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import pytest

from benchmarks.authors import speak_with_package
from benchmarks.contenders import CONTENDERS
from plugins.kyutai.lab.random_kyutai_tts import CONFIG, LARGE, SIZES, lm_shapes
from plugins.pocket.lab.random_pocket import config, shapes


@pytest.mark.parametrize(
    ("kind", "language_model", "codec"),
    [("published", 89.4, 20.1), ("published_2m", 0.9, 1.0), ("published_7m", 4.3, 2.6), ("published_18m", 15.6, 2.6)],
)
def test_release_has_the_published_parameter_count(kind: str, language_model: float, codec: float) -> None:
    """Parameters in millions. The codec of the small releases is counted without its encoder, as by Kyutai."""
    sizes = {"flow_lm": 0, "mimi": 0}
    for name, shape in shapes(config(kind)).items():
        if kind == "published" or not name.startswith(("mimi.encoder", "mimi.downsample")):
            sizes[name.partition(".")[0]] += prod(shape)
    assert sizes["flow_lm"] / 1e6 == pytest.approx(language_model, abs=0.06)
    assert sizes["mimi"] / 1e6 == pytest.approx(codec, abs=0.06)


@pytest.mark.parametrize(("size", "base", "billions"), [("0.75b", CONFIG, 0.82), ("1.6b", LARGE, 1.83)])
def test_kyutai_tts_release_has_the_stated_parameter_count(size: str, base: dict[str, Any], billions: float) -> None:
    tensors = lm_shapes({**base, **SIZES[size]})
    assert round(sum(map(prod, tensors.values())) / 1e9, 2) == billions
    assert size != "1.6b" or len(tensors) == 418  # as published


@pytest.mark.parametrize("lost", [0, 1])
def test_benchmark_fails_if_samples_are_missing(lost: int) -> None:
    """The authors' code of Orpheus leaves out three frames."""
    package = replace(
        CONTENDERS["orpheus"],
        load=lambda release: lambda frames: iter([2048] * (frames - 3 - lost)),
        packages=("numpy",),
    )
    if lost:
        with pytest.raises(RuntimeError, match=rf"expected {9 * 2048} samples, got {8 * 2048}"):
            speak_with_package(package, Path(), 20)
    else:
        made = speak_with_package(package, Path(), 20)
        assert made["versions"] == {"numpy": version("numpy")}
        assert made["pss_mb"] > 10
