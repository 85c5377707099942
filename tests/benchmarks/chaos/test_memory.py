"""Memory figures of processes under load: slopes, names and reports."""

import os
import subprocess

import pytest

from benchmarks.chaos.checks import Follower, describe
from benchmarks.harness import Usage, name_of, read_usage, slope_mb_per_min
from stretto.launcher.processes import ProcessSnapshot


def usage(at_s: float, mb: float) -> Usage:
    return Usage(at_s=at_s, rss_mb=mb, pss_mb=mb, uss_mb=mb, cpu_s=at_s / 2, threads=3, descriptors=7)


def test_memory_slope_is_a_linear_fit() -> None:
    noise = (0.3, -0.3, -0.3, 0.3)
    rising = [usage(at_s, 100 + 0.5 * at_s / 60 + noise[index % 4]) for index, at_s in enumerate(range(0, 3600, 5))]
    assert slope_mb_per_min(rising, "rss_mb") == pytest.approx(0.5, abs=0.01)
    assert slope_mb_per_min([usage(0, 1), usage(5, 1)], "rss_mb") == 0
    assert slope_mb_per_min([usage(0, 1)], "rss_mb") == 0


def test_reported_memory_slope_excludes_the_warm_up() -> None:
    follower = Follower(os.getpid())
    follower.usages = {"engine": [usage(at_s, 500 + min(at_s, 600)) for at_s in range(0, 3600, 5)]}
    ends = {"engine": usage(0, 500)}, {"engine": usage(3600, 1100)}
    record = describe(follower, 20.0, *ends)["engine"]
    assert (record["rss_mb_start"], record["rss_mb_warm"], record["rss_mb_end"]) == (500, 1100, 1100)
    assert record["slope_rss_mb_per_min"] == 0
    assert record["cores"] == 0.5
    assert record["threads"] == [3, 3]


def test_usage_of_a_running_process_is_read() -> None:
    own = read_usage(os.getpid(), 1.0)
    assert own is not None
    assert own.rss_mb >= own.pss_mb > 1
    assert own.threads >= 1 <= own.descriptors
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert read_usage(ended.pid, 1.0) is None


@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        ("tritonserver", "/opt/bin/tritonserver --model-repository=m", "tritonserver"),
        ("triton_python_b", "/opt/stub /srv/repository/language_model/1/model.py prefix 1 2", "language_model"),
        ("VLLM::EngineCor", "VLLM::EngineCore", "engine"),
        ("host_of_12", "python -P -m stretto.engine.host /run/spare", "engine_host"),
        ("engine_spare", "python -P -m stretto.engine.host /run/spare", "engine_spare"),
        ("python", "python -m stretto serve --http-port 1", "launcher"),
        ("python", "python -P -m stretto.proxy", "proxy"),
        ("python", "python -P -m stretto.preprocessing.audio_worker 9 0", "audio_worker"),
        ("triton_python_b", "/opt/triton_python_backend_stub /x/acoustic_decoder/1/model.py", "acoustic_decoder"),
        ("python", "python -c from multiprocessing.resource_tracker import main", "resource tracker"),
    ],
)
def test_process_name_is_derived_from_its_command(name: str, command: str, expected: str) -> None:
    assert name_of(ProcessSnapshot(2, 1, 2, name, command)) == expected
