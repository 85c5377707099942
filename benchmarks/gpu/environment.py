"""Whether this host is what the engine expects: Triton compiles, vLLM's kernels load, the plugin is found."""

import importlib.util
import os
from collections.abc import Iterator
from importlib.metadata import entry_points, version
from typing import Any

import torch
from stretto.engine.environment import prepare_environment

from benchmarks.gpu.sections import Setup


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """One line of facts, then one for each kernel tried."""
    prepare_environment()
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    has_tests = importlib.util.find_spec("tests.reference.speech_lm") is not None  # not another package of that name
    plugins = entry_points(group="vllm.general_plugins").names
    yield {
        "platform": type(current_platform).__name__,
        "gpu": torch.cuda.get_device_name() if setup.device == "cuda" else None,
        "capability": torch.cuda.get_device_capability() if setup.device == "cuda" else None,
        "triton": version("triton"),
        "cuda": torch.version.cuda,
        "plugin": "stretto" in plugins,
        "tests": has_tests,
        "ok": HAS_TRITON and "stretto" in plugins and has_tests and is_interpreted == setup.is_small,
    }
    yield {"kernel": "rms_norm", **_rms_norm(setup)}


def _rms_norm(setup: Setup) -> dict[str, Any]:
    """One of vLLM's compiled kernels against torch."""
    from vllm import _custom_ops

    x = torch.randn(5, 64, device=setup.device)
    weight, out = torch.rand(64, device=setup.device), torch.empty_like(x)
    _custom_ops.rms_norm(out, x, weight, 1e-6)
    expected = torch.nn.functional.rms_norm(x, (64,), weight, 1e-6)
    difference = float((out - expected).abs().max())
    return {"max_difference": difference, "ok": difference < 1e-5}
