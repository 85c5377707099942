"""Job that checks the host: versions, compilers, and what the other jobs and the Triton server require."""

import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.jobs import Setup, failure

SHARED = 1 << 20
WORD = b"shared"


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield a result line for each check. A check that fails does not prevent the others."""
    questions: tuple[Callable[[Setup], dict[str, Any]], ...] = (_share_memory, _software, _server_parts, _rms_norm)
    for question in questions:  # the first check forks, which must happen before CUDA is used
        try:
            figures = question(setup)
        except Exception as error:
            figures = failure(error)
        yield {"what": question.__name__.strip("_"), **figures}


def _software(setup: Setup) -> dict[str, Any]:
    """Check hardware, versions, and that vLLM finds the plugin."""
    import torch
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    plugins = entry_points(group="vllm.general_plugins").names
    has_tests = importlib.util.find_spec("tests.reference.module_lm") is not None  # not another package called tests
    facts: dict[str, Any] = {
        "platform": type(current_platform).__name__,
        "triton": version("triton"),
        "cuda": torch.version.cuda,
        "gcc": _first_line("gcc", "--version"),  # Triton compiles kernel launchers with it
        "shm_gib": round(shutil.disk_usage("/dev/shm").total / 2**30, 2),
        "plugin": "stretto" in plugins,
        "tests": has_tests,
    }
    if setup.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["capability"] = torch.cuda.get_device_capability()
        facts["free_gib"] = round(torch.cuda.mem_get_info()[0] / 2**30, 1)
        facts["driver"] = _first_line("nvidia-smi", "--query-gpu=driver_version,compute_mode", "--format=csv,noheader")
        facts["bindings"] = version("cuda-bindings")
    is_right = HAS_TRITON and facts["plugin"] and has_tests and (setup.is_small or facts["gcc"] is not None)
    return {**facts, "ok": bool(is_right)}


def _server_parts(setup: Setup) -> dict[str, Any]:
    """Check what the second call requires: libpython, and MPS, which lets processes use a GPU concurrently."""
    from stretto.launcher.triton_24_10.wheel import python_library

    return {
        "python": sys.version.split()[0],
        "libpython": str(python_library()),
        "mps": shutil.which("nvidia-cuda-mps-control"),
        "mps_runs": os.path.exists(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")),
        "pytriton": importlib.util.find_spec("pytriton") is not None,
    }


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().split("\n")[0]


def _share_memory(setup: Setup) -> dict[str, Any]:
    """Check that a client can read this process's GPU memory as a ring, and may be killed without a CUDA error."""
    if setup.is_small:
        return {"left_out": "needs a GPU"}
    own_end, there = multiprocessing.Pipe()
    client = multiprocessing.get_context("fork").Process(target=_read_ring, args=(there,), daemon=True)
    client.start()  # before this process has used CUDA
    from stretto.triton_io.cuda_ring import CudaRings

    rings = CudaRings("cuda:0")
    word = np.frombuffer(WORD, np.uint8)
    slots = rings.allocate(Path("/dev/shm") / str(_answer(own_end)), SHARED, "")
    slots.write(SHARED - len(WORD), word, None)
    size = rings.num_bytes
    own_end.send("written")
    answered = _answer(own_end)
    client.kill()
    client.join(5)
    slots.write(0, word, None)
    slots.close()
    return {"bytes": size, "ok": answered == WORD and rings.num_bytes == 0}


def _read_ring(connection: Connection) -> None:
    from stretto_client.shared_memory import Ring, RingSize

    ring = Ring("cuda", RingSize(1, SHARED))
    connection.send(ring.option()["name"])
    connection.recv()
    data = ring.read_samples({"slot": 0, "slots": 1, "samples": SHARED, "dtype": "uint8"})
    connection.send(data[-len(WORD) :].tobytes())
    signal.pause()  # holds the memory until it is killed


def _answer(connection: Connection) -> object:
    if not connection.poll(8):
        raise TimeoutError("the other process did not answer within 8 s")
    answer: object = connection.recv()
    return answer


def _rms_norm(setup: Setup) -> dict[str, Any]:
    """Compare a compiled vLLM kernel with torch, to check that the extension works with this torch and GPU."""
    import torch
    from vllm import _custom_ops

    x = torch.randn(5, 64, device=setup.device)
    weight = torch.rand(64, device=setup.device)
    out = torch.empty_like(x)
    _custom_ops.rms_norm(out, x, weight, 1e-6)
    expected = torch.nn.functional.rms_norm(x, (64,), weight, 1e-6)
    difference = float((out - expected).abs().max())
    return {"max_difference": difference, "ok": difference < 1e-5}
