"""Which process is meant by which name."""

import pytest

from benchmarks.recovery import PROCESSES, is_named

STUB = "/cache/backends/python/triton_python_backend_stub"
COMMANDS = {
    "tritonserver": (["/opt/tritonserver/bin/tritonserver", "--model-repository=/x/acoustic_decoder/"], "tritonserver"),
    "preprocessor": ([STUB, "/x/preprocessor/1/model.py"], "triton_python_b"),
    "language_model": ([STUB, "/x/language_model/1/model.py"], "triton_python_b"),
    "acoustic_decoder": ([STUB, "/x/acoustic_decoder/1/model.py"], "triton_python_b"),
    "engine": (["VLLM::EngineCore"], "VLLM::EngineCor"),
    "audio worker": (["/x/python", "-P", "-m", "stretto.preprocessing.audio_worker", "9", "0"], "python"),
    "proxy": (["/x/python", "-P", "-m", "stretto.proxy"], "python"),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_name_means_one_process_and_no_other(name: str) -> None:
    assert [each for each, (command, executable) in COMMANDS.items() if is_named(name, command, executable)] == [name]
