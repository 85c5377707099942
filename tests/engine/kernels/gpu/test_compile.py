"""The kernels also compile for CUDA devices, because the interpreter accepts code that a compiler may refuse."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
KERNELS = (
    "depth_attention_kernel",
    "_draw_kernel",
    "_embed_kernel",
    "_gather_kernel",
    "cross_attention_kernel",
    "words_kernel",
    "draw_streams_kernel",
    "draw_script_kernel",
    "text_maxima_kernel",
    "draw_text_kernel",
    "advance_kernel",
    "few_rows_kernel",
    "many_rows_kernel",
    "keep_kernel",
    "latent_inputs_kernel",
)


def compiled(cache: Path, *arguments: str) -> list[str]:
    """Run a module of this folder without the interpreter and return its output lines."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", *arguments]
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_kernels_compile_for_cuda_and_keep_their_values_in_registers(tmp_path: Path, capability: str) -> None:
    lines = [line.split() for line in compiled(tmp_path, "tests.engine.kernels.gpu.compile", capability)]
    assert {name for _, name, *_ in lines} == set(KERNELS)
    assert min(int(size) for _, _, size, *_ in lines) > 1000


def test_each_step_kernel_compiles_once_for_all_step_sizes(tmp_path: Path) -> None:
    assert compiled(tmp_path, "tests.engine.kernels.gpu.specialise_step") == [
        "_draw_kernel 1",
        "text_maxima_kernel 1",
        "draw_text_kernel 1",
        "draw_streams_kernel 2",  # one over stream 0, one over the others
        "advance_kernel 1",
    ]
