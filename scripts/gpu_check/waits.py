"""Whether anything in a step waits for the device: vLLM lets torch raise an error at the first call that does."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.gpu_check.parity import MODES, attempt, cases
from scripts.gpu_check.sections import Setup


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """One line; an error names the call. Only CUDA has such calls: a dry run walks the path."""
    os.environ["VLLM_GPU_SYNC_CHECK"] = "error"  # read when vllm is imported
    mode = "eager" if setup.is_small else "FULL_AND_PIECEWISE, async"
    assert mode in MODES
    with tempfile.TemporaryDirectory() as folder:
        case = next(cases(setup, Path(folder)))
        error = attempt(setup, case, mode).get("error")
        yield {"checkpoint": case.name, "mode": mode, "error": error, "ok": error is None}
