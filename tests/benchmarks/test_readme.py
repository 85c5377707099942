"""The README's figures are those of the latest result lines."""

from typing import Any

import pytest

from benchmarks import readme
from benchmarks.readme import BEGIN, BUNDLED, END, README, RESULTS, read_results, replaced, text


def line(concurrency: int, **other: Any) -> dict[str, Any]:
    """Return a result line of the bundled model."""
    figures = {"audio_ttfp_p50": 0.2, "audio_ttfp_p95": 0.25, "audio_rtf_p50": 0.14, "audio_throughput": 7.0}
    hardware = {"cpu": "AMD EPYC", "cores": 2, "avx512": True}
    place = {"benchmark": "speech", "concurrency": concurrency, "cfg_retention": 0.94}
    return {**place, **figures, "hardware": hardware, "time": "2026-11-23T10:00:00+00:00", "revision": "abc", **other}


def test_readme_uses_the_latest_result_of_each_point() -> None:
    written = text([*map(line, BUNDLED), line(8, audio_throughput=31.25)])
    assert "2 cores of an AMD EPYC with AVX-512, 2026-11-23, revision `abc`" in written
    assert "| 1 | 0.20 / 0.25 s | 0.14 | 7.0 | 0.94 |" in written
    assert "| 8 | 0.20 / 0.25 s | 0.14 | 31.2 | 0.94 |" in written
    assert "Pocket TTS" not in written


@pytest.mark.parametrize(("processor", "where"), [("AMD EPYC", ""), ("Intel Xeon", ", on an Intel Xeon")])
def test_readme_lists_families_with_complete_results(processor: str, where: str) -> None:
    pocket = [
        {
            "benchmark": "pocket_tts",
            "streams": streams,
            "frames_per_cpu_s": 10.4 * streams,
            "package_frames_per_cpu_s": 18.3,
            "hardware": {"cpu": processor},
        }
        for streams in readme.POCKET
    ]
    written = text([*map(line, BUNDLED), *pocket])
    assert f"with random weights{where}:\nPocket TTS 10 / 42 / 166 (its authors' package: 18.3)." in written
    assert "Pocket TTS" not in text([*map(line, BUNDLED), *pocket[:2]])
    quantized = [each | {"quantize": "int8", "frames_per_cpu_s": 20.0 * each["streams"]} for each in pocket]
    written = text([*map(line, BUNDLED), *pocket, *quantized])
    assert "Pocket TTS 10 / 42 / 166, in int8 20 / 80 / 320 (its authors' package: 18.3)." in written


def test_error_names_missing_metrics() -> None:
    with pytest.raises(ValueError, match=r"expected lines of `ensemble` at \(1, 8, 32\)"):
        text([line(1)])


@pytest.mark.parametrize("page", ["no comments", f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_readme_without_exactly_one_results_block_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        replaced(page, "new\n")


def test_rest_of_the_page_is_unchanged() -> None:
    assert replaced(f"a\n{BEGIN}old\n{END}b\n", "new\n") == f"a\n{BEGIN}new\n{END}b\n"


def test_readme_has_the_latest_results() -> None:
    page = README.read_text()
    assert replaced(page, text(read_results(RESULTS))) == page
