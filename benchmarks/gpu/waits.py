"""Detection of waits in a step: for the device, or for the compilation of a kernel.

For the device, vLLM lets torch raise an error at the first synchronising call. For Triton, kernels compiled after the
start of the engine are named; one of Stretto's is an error, because its specialisation would depend on the batch.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.parity import be_exact, cases, compare

OURS, MODE = "stretto.", "FULL_DECODE_ONLY, async"


@contextmanager
def compiled(names: list[str]) -> Iterator[None]:
    """Append the module and name of each kernel that Triton compiles during the `with` block."""
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
    """Yield one line; an error names the call. Only CUDA has such calls, so a dry run just runs the code.

    The job sets VLLM_GPU_SYNC_CHECK, which vLLM reads on import.
    """
    names: list[str] = []
    be_exact()
    with tempfile.TemporaryDirectory() as folder:
        case = next(cases(setup, Path(folder)))
        figures = compare(setup, case, MODE, lambda: compiled(names))
    ours = [name for name in names if name.startswith(OURS)]
    yield {"mode": MODE, **figures, "compiled": names, "ok": figures["ok"] and not ours}
