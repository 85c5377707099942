"""Whether anything in a step waits: for the device, or for a kernel that is compiled only now.

For the device: vLLM lets torch raise an error at the first call that does. For Triton: the kernels that it compiled
after the engine had started are named; one of ours is an error, as what it is compiled for then depends on the batch.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.parity import MODES, attempt, cases
from benchmarks.gpu.sections import Setup

OURS = "stretto."


@contextmanager
def compiled(names: list[str]) -> Iterator[None]:
    """Add the kernels, by module and name, that Triton compiles while the block runs."""
    from triton import knobs

    former = knobs.runtime.jit_post_compile_hook

    def note(**kwargs: Any) -> Any:
        function = kwargs["fn"]
        names.append(f"{function.module}.{function.name}")
        return None if former is None else former(**kwargs)

    knobs.runtime.jit_post_compile_hook = note
    try:
        yield
    finally:
        knobs.runtime.jit_post_compile_hook = former


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """One line; an error names the call. Only CUDA has such calls: a dry run walks the path."""
    os.environ["VLLM_GPU_SYNC_CHECK"] = "error"  # read when vllm is imported
    mode = "eager" if setup.is_small else "FULL_AND_PIECEWISE, async"
    assert mode in MODES
    names: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        case = next(cases(setup, Path(folder)))
        error = attempt(setup, case, mode, lambda: compiled(names)).get("error")
        ours = [name for name in names if name.startswith(OURS)]
        yield {"checkpoint": case.name, "mode": mode, "error": error, "compiled": names, "ok": not error and not ours}
