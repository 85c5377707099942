"""Compile kernels into Triton's cache, for a GPU that this machine need not have.

    TRITON_CACHE_DIR=DIR LD_LIBRARY_PATH=STUBS python -m benchmarks.gpu.kernel_cache 90    # compute capability 9.0

These are the kernels of the jobs `kernels`, `codec` and `depth`, which would otherwise spend their time on compiling. A
bundle contains the cache (`benchmarks.gpu.bundling pack --kernels DIR`). Triton finds a kernel in it if its source, the
types and alignment of its arguments, and Triton itself are the same, so this must run with the Triton release and the
Python version of the host. Kernels are launched as the job does, with tensors in host memory; a launch only compiles.
`STUBS` holds stand-ins for the driver's libraries (scripts/cuda_without_gpu.sh).
"""

# ruff: noqa: E402  (vLLM reads the environment on import)
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from stretto.engine.environment import prepare_environment

prepare_environment()

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.gpu.decoder import modes_of
from benchmarks.gpu.depth import DTYPE, WIDTH_OF_BACKBONE, weights
from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.kernels import DRAWS, PAD, SAMPLERS, WIDTH, draw_params, family_of
from benchmarks.gpu.models import MODELS
from lab.releases.every_codec import every_codec
from stretto.codecs.base import Window
from stretto.decoding.convolutions import convolutions_in
from stretto.engine.kernels.gpu import depth as layers
from stretto.engine.kernels.gpu import row_products
from stretto.engine.kernels.gpu.depth import DeviceDepth
from stretto.engine.kernels.gpu.draw import draw_on_device
from stretto.engine.kernels.gpu.products import embed_on_device
from stretto.engine.reply_rules import SegmentRules

SHARED_BYTES = 227 << 10  # that a program can have on Hopper


class CompilingDriver:
    """Driver for Triton that only compiles kernels and their launch code, for a compute capability such as 90."""

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
    """Launch each kernel of the job `kernels` with the same arguments, except for their values."""
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


def compile_codec() -> None:
    """Launch the kernels of Qwen3-TTS's codec in each mode. One window is enough for all (`specialise_codec`)."""
    fake_gpu = import_module("stretto.testing.fake_gpu")
    codec = every_codec("qwen3_12hz", is_narrow=False)
    codes = torch.zeros(1, codec.spec.num_codebooks, 1, dtype=torch.int64)
    window = Window(codes, 0, 0, torch.zeros(1, dtype=torch.int64), codec.initial_state(1))
    with fake_gpu.kernels_on_host():
        for mode in modes_of(codec):
            with convolutions_in(mode):
                codec.decode(window)


def compile_depth() -> None:
    """Launch the kernels of a pass through Qwen3-TTS's depth transformer, and of its heads."""
    family = MODELS["qwen3_tts"].read_family(Setup("cuda", Path()))
    depth = weights(Setup("cpu", Path()), family, WIDTH_OF_BACKBONE, DTYPE)
    hidden = torch.zeros(1, WIDTH_OF_BACKBONE, dtype=DTYPE)
    code = torch.zeros(1, dtype=torch.int64)
    norms = torch.library.Library("_C", "FRAGMENT")
    norms.impl("rms_norm", lambda *arguments: None, "CPU")  # vLLM's last norm is no kernel of ours
    for begins_early in (False, True):
        is_early = partial(bool, begins_early)
        with patch.object(row_products, "launches_early", is_early), patch.object(layers, "launches_early", is_early):
            on_device = DeviceDepth(depth)
            on_device.prepare(1)
            state = on_device.begin(hidden, code)
            on_device.next(code, 2)
            row_products.RowProduct(depth.heads.data[0], dtype=torch.float32)(state)


def main(capability: int) -> None:
    triton.runtime.driver.set_active(CompilingDriver(capability))
    compile_kernels()
    with torch.inference_mode():
        compile_codec()
        compile_depth()


if __name__ == "__main__":
    main(int(sys.argv[1]))
