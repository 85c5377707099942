"""The README's figures are those of the latest result lines."""

from typing import Any

from benchmarks.readme import BUNDLED, POCKET, README, RESULTS, read_results, replaced, text


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


def test_readme_compares_only_figures_of_the_same_processor() -> None:
    other = {"cpu": "AMD EPYC", "cores": 2, "avx512": False}
    pocket = [
        line(0, benchmark="pocket_tts", streams=streams, package_frames_per_cpu_s=15.0, frames_per_cpu_s=30.0)
        for streams in POCKET
    ]
    quantized = [{**record, "quantize": "int8", "hardware": other} for record in pocket]
    written = text([*map(line, BUNDLED), *pocket, *quantized])
    assert "Pocket TTS 30 / 30 / 30 (its authors' package: 15.0)" in written
    assert "int8" not in written


def test_readme_has_the_latest_results() -> None:
    page = README.read_text()
    assert replaced(page, text(read_results(RESULTS))) == page
