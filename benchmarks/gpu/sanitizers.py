"""Jobs that check the GPU code with sanitizers: compute-sanitizer for our kernels, torch's for the decoder's streams.

    python -m benchmarks.gpu.sanitizers --device cuda     # the kernel launches that compute-sanitizer watches

In compute-sanitizer, memcheck finds accesses outside of allocations, and racecheck finds conflicts in shared memory.
Torch's sanitizer (`TORCH_CUDA_SANITIZER`) finds tensors that two streams use without an event between them. If
compute-sanitizer is not installed or does not support the GPU, the job passes and its line gives the reason in
`left_out`.
"""

import argparse
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from glob import glob
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.decoder import CHUNKS, streamed
from benchmarks.gpu.jobs import Setup
from lab.releases.every_codec import make_codec
from stretto.config import DecoderConfig
from stretto.decoder.worker import DecoderWorker
from stretto.engine.environment import prepare_environment
from stretto.testing.codec_streams import random_codes

TOOL = "compute-sanitizer"
WHEEL = "nvidia-cuda-sanitizer-api"
FAMILIES = "TINY", "BAGPIPER", "QWEN3_TTS"  # an alignment pointer; CFG pairs; a depth transformer
DONE = "walked"
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
ERRORS = 86  # exit status of compute-sanitizer for errors found
# Names of our kernels. Torch's are mangled C++ names; checking those, too, takes many minutes.
OURS = "regex=^[a-z0-9_]+_kernel$"
# One allocation per tensor; otherwise an access outside of a tensor may stay inside torch's pool and go unnoticed.
WITHOUT_POOL = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


# ----- compute-sanitizer


def places() -> list[Path]:
    """Return the possible paths of compute-sanitizer: on PATH, in CUDA toolkits, and in NVIDIA's wheel."""
    paths = [Path(path) for path in [shutil.which(TOOL)] if path]
    toolkits = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    toolkits += sorted(glob("/usr/local/cuda*") + glob("/opt/nvidia/cuda*"), reverse=True)
    paths += [Path(toolkit, folder, TOOL) for toolkit in toolkits for folder in ("bin", TOOL)]
    packages = [*site.getsitepackages(), *filter(None, sys.path)]
    return paths + [Path(path) for package in packages for path in sorted(glob(f"{package}/nvidia/*/bin/{TOOL}"))]


def find() -> Path | None:
    """Return the first executable of `places`, or None."""
    return next((path for path in places() if path.is_file() and os.access(path, os.X_OK)), None)


def run_tool(setup: Setup, tool: str, limit_s: float) -> Iterator[dict[str, Any]]:
    """Run `walk` under `tool`, for at most `limit_s` seconds; yield a line with the number of errors."""
    yield {"tool": tool, **watch(setup, tool, limit_s)}


def run_planted(setup: Setup, limit_s: float) -> Iterator[dict[str, Any]]:
    """Run a kernel that writes outside its tensor under memcheck, which must find this error; yield a line."""
    figures = watch(setup, "memcheck", limit_s, "--planted")
    yield {
        "tool": "memcheck",
        "planted": True,
        **figures,
        **({"ok": figures["errors"] > 0} if "errors" in figures else {}),
    }


def watch(setup: Setup, tool: str, limit_s: float, *options: str) -> dict[str, Any]:
    """Run this module with `options` under `tool`; return the number of errors, or why there is no such number."""
    executable = find()
    if executable is None:
        reason = f"{TOOL} is not installed: neither on PATH, nor in a CUDA toolkit, nor from the wheel {WHEEL}"
        return {"left_out": reason}
    # The tool would wait ten seconds for the first use of CUDA, which imports delay by more.
    command = [str(executable), "--tool", tool, "--launch-timeout", "0", "--target-processes", "application-only"]
    command += ["--error-exitcode", str(ERRORS), "--print-limit", "20", "--kernel-name", OURS]
    command += [sys.executable, "-m", "benchmarks.gpu.sanitizers", "--device", setup.device, *options]
    try:
        done = subprocess.run(
            command, env=os.environ | WITHOUT_POOL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        print((error.stdout or b"").decode(errors="replace"))
        return {"left_out": f"the launches did not end within {limit_s:.0f} s", "ok": False}
    print(done.stdout)
    return {"at": str(executable), **read(done.stdout)}


def read(output: str) -> dict[str, Any]:
    """Return the number of errors in the output of compute-sanitizer, or the reason why it has no such number."""
    match = SUMMARY.search(output)
    lines = output.strip().splitlines() or ["no output"]
    if "not supported" in output and DONE not in lines:
        refusal = next(line for line in lines if "not supported" in line)
        return {"left_out": f"{TOOL} refuses this GPU: {refusal.strip('= ')}"}
    if match is None:
        return {"error": f"no summary: {lines[-1]}", "ok": False}
    errors = int(match.group(1))
    return {"errors": errors, "ok": errors == 0 and DONE in lines}


def walk(device: torch.device) -> None:
    """Launch all our kernels: in two steps of each family, in a depth transformer's frame, and alone."""
    walks = import_module("tests.engine.worker.walks")
    small = import_module("tests.small_vocabularies")
    rules_of = import_module("stretto.engine.reply_rules").SegmentRules
    tiny = import_module("stretto.families.tiny.family").TINY
    for name in FAMILIES:
        family = tiny if name == "TINY" else getattr(small, name)
        walked = walks.Walk(family, [walks.captured(rules_of(family, walks.LENGTH), 4, None, device)], seed=1)
        for _ in range(2):
            walked.step()
    attend(device)
    multiply(device)
    embed(device)
    if device.type == "cuda":
        torch.cuda.synchronize()


def attend(device: torch.device) -> None:
    """Launch the attention kernel of a depth transformer for the first two positions and the last."""
    kernel = import_module("stretto.engine.kernels.gpu.depth").depth_attention_kernel
    rows = 3
    heads = 4
    kv_heads = 2
    size = 32
    positions = 16
    cos_sin = torch.randn(positions, size, device=device)
    weights = torch.rand(2, size, device=device)
    keys, values = torch.zeros(2, rows, kv_heads, positions, size, device=device)
    for first, num_new in ((0, 2), (positions - 1, 1)):
        qkv = torch.randn(rows * num_new, (heads + 2 * kv_heads) * size, device=device)
        out = torch.empty(rows * num_new, heads * size, device=device)
        sizes = heads, kv_heads, size, positions, positions, size
        kernel[rows, heads](out, qkv, keys, values, *weights, cos_sin, first, 1e-6, num_new, *sizes, False, num_warps=4)


def multiply(device: torch.device) -> None:
    """Launch the product of a depth transformer's layers at sizes that are not multiples of a tile."""
    products = import_module("stretto.engine.kernels.gpu.row_products")
    for dtype in (torch.float32, torch.bfloat16):
        norm = SimpleNamespace(weight=torch.rand(1100, device=device).to(dtype), variance_epsilon=1e-6)
        weight = torch.randn(36, 1100, device=device, dtype=dtype)
        x = torch.randn(19, 1100, device=device, dtype=dtype)
        products.RowProduct(weight)(x, torch.randn(19, 36, device=device, dtype=dtype))
        products.RowProduct(weight, norm=norm, is_gated=True)(x)


def embed(device: torch.device) -> None:
    """Launch the kernel that adds the embeddings of a row's streams, at a width that is not a multiple of a block."""
    table = torch.randn(50, 72, device=device)
    ids = torch.arange(24, device=device).view(3, 8)
    import_module("stretto.engine.kernels.gpu.products").embed_on_device(table, ids, 0, True)


@triton.jit
def planted_kernel(out: tl.tensor) -> None:
    tl.store(out + 4096, 1.0)


# ----- torch's sanitizer

RACE = "CUDASanitizerErrors"

Report = Callable[[Any, Any, Any, Any], Any]  # (operator, types, arguments, keyword arguments) -> the operator's result


class Delegate(TorchDispatchMode):
    """Dispatch mode that reports one thread's operators to a sanitizer, whose own mode covers only its thread."""

    def __init__(self, report: Report):
        super().__init__()
        self._report = report

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._report(func, types, args, kwargs or {})


@contextmanager
def watched_decoders(watch: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Make decoders that start during the `with` block run their threads inside `watch`."""
    former = DecoderWorker._run

    def watched(self: DecoderWorker) -> None:
        with watch():
            former(self)

    DecoderWorker._run = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        DecoderWorker._run = former  # type: ignore[method-assign]


def run_decoder(setup: Setup, name: str, report: Report | None = None) -> Iterator[dict[str, Any]]:
    """Decode utterances in chunks under a sanitizer and yield a result line.

    CUDA graphs are off, because the sanitizer cannot inspect them.

    Args:
        report: Function that runs an operator and checks it. None selects torch's sanitizer, which the job enables
            through TORCH_CUDA_SANITIZER. In a dry run, None means no check.
    """
    report = report or (run_operator if setup.is_small else sanitizing())
    seen, races = 0, list[str]()

    def count(*operator: Any) -> Any:
        nonlocal seen
        seen += 1
        try:
            return report(*operator)
        except Exception as error:
            races.extend([str(error)[:500]] if type(error).__name__ == RACE else [])
            raise

    codec = make_codec(name, setup.device, is_narrow=True)
    codes = random_codes(codec, 2 if setup.is_small else 6, 60).numpy()
    config = DecoderConfig(device=setup.device, graphs=False, max_batch=4)
    with watched_decoders(lambda: Delegate(count)):
        try:
            streamed(codec, config, codes, *CHUNKS[1:])
        except Exception:  # the decoder raises its own error instead of the sanitizer's
            if not races:
                raise
    yield {"codec": name, "operators": seen, "races": races, "ok": not races and seen > 0}


def run_operator(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def sanitizing() -> Report:
    """Return the function of torch's sanitizer that runs and checks an operator."""
    sanitizer = import_module("torch.cuda._sanitizer").cuda_sanitizer
    assert sanitizer.enabled, "TORCH_CUDA_SANITIZER is not set"
    return sanitizer.dispatch.__torch_dispatch__


def main() -> None:
    """Launch all kernels, or with `--planted` a faulty one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--planted", action="store_true", help="launch a kernel that writes outside of its tensor")
    arguments = parser.parse_args()
    prepare_environment()
    if arguments.planted:
        planted_kernel[1,](torch.zeros(4, device=arguments.device))
        torch.cuda.synchronize()
    else:
        walk(torch.device(arguments.device))
    print(DONE, flush=True)


if __name__ == "__main__":
    main()
