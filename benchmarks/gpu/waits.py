"""Whether anything in a step waits: for the device, or for a kernel that is compiled only now.

For the device: vLLM lets torch raise an error at the first call that does. For Triton: the kernels that it compiled
after the engine had started are named; one of ours is an error, as what it is compiled for then depends on the batch.
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
    """One line; an error names the call. Only CUDA has such calls: a dry run walks the path.

    The job sets VLLM_GPU_SYNC_CHECK, which vLLM reads while it is imported.
    """
    names: list[str] = []
    be_exact()
    with tempfile.TemporaryDirectory() as folder:
        case = next(cases(setup, Path(folder)))
        figures = compare(setup, case, MODE, lambda: compiled(names))
    ours = [name for name in names if name.startswith(OURS)]
    yield {"mode": MODE, **figures, "compiled": names, "ok": figures["ok"] and not ours}
