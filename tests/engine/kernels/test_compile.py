"""The interpreter runs what a compiler may refuse: the kernels also compile for CUDA devices, without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_for_cuda(capability: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.engine.kernels.compile", capability]
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    sizes = dict(line.split() for line in done.stdout.splitlines())
    assert sizes.keys() == {"_draw_kernel", "_embed_kernel"}
    assert min(map(int, sizes.values())) > 1000
