"""Compile the kernels of the job `kernels` into Triton's cache, for a GPU that this machine need not have.

    TRITON_CACHE_DIR=DIR LD_LIBRARY_PATH=STUBS python -m benchmarks.gpu.kernel_cache 90    # compute capability 9.0

A bundle carries the cache (`benchmarks.gpu.bundling pack --kernels DIR`). Triton finds a kernel in it if its source,
the types and alignment of its arguments, and Triton itself are the same, so this must run with the Triton release and
the Python version of the host. Kernels are launched as the job does, with tensors in host memory; a launch only
compiles. `STUBS` holds stand-ins for the driver's libraries (scripts/cuda_without_gpu.sh).
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.gpu.kernels import DRAWS, PAD, SAMPLERS, WIDTH, draw_params, family_of
from stretto.engine.kernels.gpu.draw import draw_on_device
from stretto.engine.kernels.gpu.products import embed_on_device
from stretto.engine.reply_rules import SegmentRules

SHARED_BYTES = 227 << 10  # that a program can have on Hopper


class CompilingDriver:
    """Driver for Triton under which kernels and the code that launches them are compiled, and launches do nothing.

    Args:
        capability: Compute capability of the GPU, times ten.
    """

    def __init__(self, capability: int) -> None:
        from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

        self._target = GPUTarget("cuda", capability, 32)
        self._make_launcher = CudaLauncher
        CudaUtils()
        vars(self)["utils"] = self  # Triton's name for the object that loads kernels

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES}

    def load_binary(self, *binary: Any) -> tuple[int, int, int, int, int]:
        """Return a module, a function, registers, spills and the number of threads of a program."""
        return 0, 0, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        self._make_launcher(source, metadata)
        return lambda *arguments: None


class LaunchingRecorder:
    """Recorder of steps that launches them and keeps nothing."""

    def is_busy(self) -> bool:
        return False

    def record(self, work: Callable[[], None]) -> Any:
        work()
        return None


def compile_kernels() -> None:
    """Launch each kernel of the job `kernels` with the arguments that it has there, except for their values."""
    for num_streams, num_columns in DRAWS.values():
        logits = torch.zeros(1, num_streams, num_columns)
        keys = torch.zeros(1, num_streams, dtype=torch.int32)
        ids = torch.zeros(num_streams, num_columns, dtype=torch.int64)
        arrays = np.zeros(1, np.float32), np.zeros(1, np.int32), np.zeros(1, np.float32)
        draw_on_device(logits, ids, keys, draw_params(map(torch.from_numpy, arrays)))
    embed_on_device(torch.zeros(16, WIDTH, dtype=torch.bfloat16), torch.zeros(1, 8, dtype=torch.int64), PAD, True)
    noise = import_module("tests.engine.kernels.gpu.test_latent_noise")
    noise.noise_of(torch.zeros(1 << 12, dtype=torch.int32))
    walks = import_module("tests.engine.worker.walks")
    for name in SAMPLERS:
        walks.captured(SegmentRules(family_of(name), walks.LENGTH), 5, LaunchingRecorder()).sampler.capture()


def main(capability: int) -> None:
    """Fill the cache."""
    triton.runtime.driver.set_active(CompilingDriver(capability))
    compile_kernels()


if __name__ == "__main__":
    main(int(sys.argv[1]))
