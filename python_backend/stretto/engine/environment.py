"""The process environment that vLLM needs, on a host without a GPU above all. Imports neither torch nor vllm.

vLLM reads these variables while it is being imported, and its child processes inherit them.
"""

import locale
import os
import sys
from importlib.metadata import PackageNotFoundError, version

# Without these the engine does not start, or starts with the old model runner.
REQUIRED = {
    # vLLM chooses the old runner where it is in doubt; the plugin is written for this one.
    "VLLM_USE_V2_MODEL_RUNNER": "1",
}
# On the CPU in addition.
REQUIRED_ON_CPU = {
    # Triton compiles for GPUs only: kernels are imported for its interpreter; `engine/kernels/cpu` stands in for them.
    "TRITON_INTERPRET": "1",
}
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
# What a user may set otherwise.
DEFAULTS = {
    # Checkpoints are folders on this machine, and nothing is reported to anyone.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
DEFAULTS_ON_CPU = {
    # A small model is faster on one thread, and the preprocessor and the decoder need the other cores.
    "OMP_NUM_THREADS": "1",
    # By default vLLM pins its worker to one core, whatever else runs on that core.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Keeps the worker inside the engine's process: vLLM moves it to another for the sake of the pinning above.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed runs on the CPU; vLLM itself goes by the name of its build."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        version("vllm-cpu")
        return True


def require_batch_invariance() -> None:
    """Have vLLM compute logits that do not depend on the batch; call it before vllm is imported.

    Raises ValueError on a build for the CPU, which has no such products, and RuntimeError if vllm has been imported.
    """
    if is_cpu_build():
        raise ValueError("batch_invariant is for GPUs: vLLM's build for the CPU does not offer it")
    if os.environ.get(BATCH_INVARIANT) != "1" and "vllm" in sys.modules:
        raise RuntimeError(f"vllm was imported before require_batch_invariance(); it needed {BATCH_INVARIANT}=1")
    os.environ[BATCH_INVARIANT] = "1"


def prepare_environment() -> None:
    """Set what vLLM needs; call it before vllm is imported.

    Raises RuntimeError if vllm has been imported already without the variables that it reads then, and where a GPU
    build would run its kernels in Triton's interpreter.
    """
    is_cpu = is_cpu_build()
    required = REQUIRED | (REQUIRED_ON_CPU if is_cpu else {})
    if not is_cpu and os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise RuntimeError("TRITON_INTERPRET is set: vLLM's build for GPUs cannot run with interpreted kernels")
    missing = [f"{name}={value}" for name, value in required.items() if os.environ.get(name) != value]
    if missing and "vllm" in sys.modules:
        raise RuntimeError(f"vllm was imported before prepare_environment(); it needed {' '.join(missing)}")
    os.environ.update(required)
    for name, value in (DEFAULTS | (DEFAULTS_ON_CPU if is_cpu else {})).items():
        os.environ.setdefault(name, value)
    # Inductor reads its templates in the locale's encoding, and Triton's Python stub starts in the C locale.
    os.environ["LC_ALL"] = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    if is_cpu and "torch" in sys.modules:  # which read OMP_NUM_THREADS when it was imported
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
