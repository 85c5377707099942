"""perf_analyzer against a real server with a fake `speech` model."""

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
import json, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    """5 responses, 20 ms apart: the first without audio; the final flag comes alone."""

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request,)).start()

    def answer(self, request):
        sender = request.get_response_sender()
        for index in range(5):
            time.sleep(0.02)
            event = dict(utterance="u", index=index, segment="audio", text="", words=[], start_s=0.04 * index,
                         duration_s=0.04 * (index > 0), sample_rate=16000, is_final=index == 4, guidance_changes=[])
            if index == 4:
                event["report"] = dict(finish_reason="stop", seed=1, guidance_scale=1.5)
            tensors = [pb_utils.Tensor("event", np.array([json.dumps(event)], object))]
            if index:
                tensors.append(pb_utils.Tensor("pcm", np.full(640, index / 10, np.float32)))
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


def profiled(folder: Path, *arguments: str) -> list[dict]:
    """Return the script's experiments, run in `folder`."""
    script = ROOT / "benchmarks" / "perf_analyzer.sh"
    done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False, timeout=300, cwd=folder)
    if done.returncode == BINARY_NOT_TO_BE_HAD:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["experiments"]


def test_perf_analyzer_streaming_export_is_parsed(server: str, tmp_path: Path) -> None:
    experiments = profiled(tmp_path, "-u", server, "-n", "6", "-c", "1 3", "-o", "exports")
    assert [experiment["concurrency"] for experiment in experiments] == [1, 3]
    for experiment in experiments:
        assert experiment["requests"] == experiment["answered"] >= 6
        assert experiment["responses"] == 5 * experiment["answered"]
        assert experiment["audio_s"] == pytest.approx(0.16 * experiment["answered"])
        assert 0.02 <= experiment["first_response_s"]["p50"] < experiment["first_audio_s"]["p50"]
        assert experiment["inter_response_s"]["p50"] > 0
