"""The benchmark against authors' code counts the samples of each reply."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.authors import speak_with_package
from benchmarks.contenders import CONTENDERS


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
