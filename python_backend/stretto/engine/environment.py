"""Process environment required by vLLM, especially on a host without a GPU.

vLLM reads these variables while it is imported, and its child processes inherit them. This module therefore imports
neither torch nor vLLM.
"""

import locale
import os
import sys
from importlib.metadata import PackageNotFoundError, version

PROCESS_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
REQUIRED = {
    # vLLM may choose the old model runner, which the plugin does not support.
    "VLLM_USE_V2_MODEL_RUNNER": "1",
}
# Additional variables for CPU builds.
REQUIRED_ON_CPU = {
    # Triton compiles only for GPUs, so kernels are imported for its interpreter and replaced by `cpu_backend`.
    "TRITON_INTERPRET": "1",
    # vLLM would divide the keys of a row among threads by the load of the step, and the sum's bits depend on it.
    "VLLM_CPU_ATTN_SPLIT_KV": "0",
}
HELD_MB = "STRETTO_HELD_MB"  # memory of the GPU, in MiB, that other servers or programs hold when the server starts
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
# Defaults that the user's environment overrides.
DEFAULTS = {
    # Checkpoints are local folders, and no usage data is reported.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
DEFAULTS_ON_CPU = {
    # A small model runs faster on one thread, and the preprocessor and the decoder need the other cores.
    "OMP_NUM_THREADS": "1",
    # By default vLLM pins its worker to one core, even if that core is busy.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Keeps the worker in the engine's process; vLLM uses a separate process only for the pinning above.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def is_cpu_build() -> bool:
    """Return True if the installed vLLM is a CPU build; as in vLLM, its package name or version decides."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        version("vllm-cpu")
        return True


def require_batch_invariance() -> None:
    """Make vLLM compute logits that do not depend on the batch (GPU only); must be called before vllm is imported."""
    if is_cpu_build():
        raise ValueError("batch_invariant requires a GPU; vLLM's CPU build does not support it")
    if os.environ.get(BATCH_INVARIANT) != "1" and "vllm" in sys.modules:
        raise RuntimeError(f"vllm was imported before require_batch_invariance() had set {BATCH_INVARIANT}=1")
    os.environ[BATCH_INVARIANT] = "1"


def prepare_environment() -> None:
    """Set the environment variables that vLLM needs; must be called before vllm is imported.

    Raises:
        RuntimeError: If vllm was imported without them, or if TRITON_INTERPRET is set for a GPU build.
    """
    is_cpu = is_cpu_build()
    required = REQUIRED | (REQUIRED_ON_CPU if is_cpu else {})
    if not is_cpu and os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise RuntimeError("TRITON_INTERPRET is set: vLLM's GPU build cannot run with interpreted kernels")
    missing = [f"{name}={value}" for name, value in required.items() if os.environ.get(name) != value]
    if missing and "vllm" in sys.modules:
        raise RuntimeError(f"vllm was imported before prepare_environment() had set {' '.join(missing)}")
    os.environ.update(required)
    for name, value in (DEFAULTS | (DEFAULTS_ON_CPU if is_cpu else {})).items():
        os.environ.setdefault(name, value)
    # Inductor reads its templates in the locale's encoding, and Triton's Python stub starts in the C locale.
    os.environ["LC_ALL"] = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    if is_cpu and "torch" in sys.modules:  # torch reads OMP_NUM_THREADS only at import
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
