"""perf_analyzer and the client against a real server with a fake `speech` model.

These tests check the protocol: decoupled responses, errors and cancellation. Other tests cover the ensemble.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import serving

ROOT = Path(__file__).parents[2]
BINARY_NOT_TO_BE_HAD = 3
CONFIG = ROOT / "model_repository" / "speech" / "config.pbtxt"
MODEL = '''
import json, pathlib, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils
from stretto.disconnects import Disconnects
from stretto.triton_io.callers import Caller

class TritonPythonModel:
    """5 responses, 20 ms apart: the first without audio; FINAL comes alone. What is "once" is refused once."""

    is_full = True

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request,)).start()

    def answer(self, request):
        caller = Caller(request, Disconnects.from_environment())
        sender = caller.sender
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[0]
        if text == b"once" and self.is_full:
            self.is_full = False
            error = pb_utils.TritonError("full: try again", pb_utils.TritonError.UNAVAILABLE)
            return sender.send(pb_utils.InferenceResponse([], error=error), flags=1)
        if text == b"bad":
            message = "invalid request: text: expected words, got bad"
            error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            return sender.send(pb_utils.InferenceResponse([], error=error), flags=1)
        for index in range(5):
            time.sleep(0.02)
            if text == b"wait":
                time.sleep(0.5)
            if caller.has_disconnected():
                pathlib.Path(__file__).with_name("cancelled").touch()
                break
            event = dict(utterance="u", index=index, segment="audio", text="", words=[], start_s=0.04 * index,
                         duration_s=0.04 * (index > 0), sample_rate=16000, is_final=index == 4, guidance_changes=[])
            if index == 4:
                event["report"] = dict(finish_reason="stop", seed=1, guidance_scale=1.5)
            tensors = [pb_utils.Tensor("event", np.array([json.dumps(event)], object))]
            if index:
                sample = np.nan if text == b"nan" else index / 10
                tensors.append(pb_utils.Tensor("pcm", np.full(640, sample, np.float32)))
            sender.send(pb_utils.InferenceResponse(tensors))
        sender.send(flags=1)
'''

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day test_perf_report.py


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    version = folder / "speech" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    tensors = re.search(r"^input \[.*?^\]\noutput \[.*?^\]", CONFIG.read_text(), re.DOTALL | re.MULTILINE)
    assert tensors
    head = 'name: "speech"\nbackend: "python"\nmax_batch_size: 0\nmodel_transaction_policy { decoupled: true }\n'
    (folder / "speech" / "config.pbtxt").write_text(head + tensors.group())
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[str]:
    with serving(repository) as address:
        yield address


def profiled(folder: Path, *arguments: str, status: int = 0) -> tuple[list[dict], str]:
    """Return the output of the script's experiments, run in `folder`."""
    script = ROOT / "benchmarks" / "perf_analyzer.sh"
    done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False, timeout=300, cwd=folder)
    if done.returncode == BINARY_NOT_TO_BE_HAD:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["experiments"], done.stderr


def behind_the_others(folder: Path, text: str) -> tuple[int, tuple[str, ...]]:
    """Return the smallest number of requests that the script sends before this text, and the flags for it."""
    (folder / "inputs").write_text(json.dumps({"data": [{"text": [text], "task": ["tts"]}]}))
    own = json.loads((ROOT / "benchmarks" / "perf_inputs.json").read_text())["data"]
    return len(own) + 1, ("--", "--input-data", str(folder / "inputs"))


def test_perf_analyzer_streaming_export_is_parsed(server: str, tmp_path: Path) -> None:
    experiments, _ = profiled(tmp_path, "-u", server, "-n", "6", "-c", "1 3", "-o", "exports")
    assert [experiment["concurrency"] for experiment in experiments] == [1, 3]
    for experiment in experiments:
        assert experiment["requests"] == experiment["answered"] >= 6
        assert experiment["responses"] == 5 * experiment["answered"]
        assert experiment["audio_s"] == pytest.approx(0.16 * experiment["answered"])
        assert 0.02 <= experiment["first_response_s"]["p50"] < experiment["first_audio_s"]["p50"]
        assert experiment["inter_response_s"]["p50"] > 0


def test_perf_analyzer_reports_the_load_refused_as_full(server: str, tmp_path: Path) -> None:
    number, inputs = behind_the_others(tmp_path, "once")
    experiments, said = profiled(
        *(tmp_path, "-u", server, "-n", str(number), "-c", "1 2", "-r", "20", "-o", "exports", *inputs), status=1
    )
    assert [(each.get("concurrency"), each.get("request_rate")) for each in experiments] == [(2, None), (None, 20)]
    assert "full: try again" in said
    assert said.splitlines()[-1].endswith("without one complete answer: 1 at a time")


def test_truncated_exports_are_merged(server: str, tmp_path: Path) -> None:
    """perf_analyzer ends an export at a value that is not finite; the request after the script's own has one."""
    number, inputs = behind_the_others(tmp_path, "nan")
    (experiment,), said = profiled(tmp_path, "-u", server, "-n", str(number), "-c", "1", "-o", "exports", *inputs)
    assert f"of {number} requests: it was truncated" in said
    assert experiment["requests"] == experiment["answered"] > 0
    assert (tmp_path / "exports" / "concurrency-1.2.json").exists()
