"""GPUs of this machine, as nvidia-smi reports them, and their numbers on a command line.

No other module runs nvidia-smi.
"""

import argparse
import shutil
import subprocess
from dataclasses import dataclass

MIB = 1 << 20
MAX_DIGITS = 4  # of a GPU's number
FIELDS = "index,name,memory.total,memory.free,compute_cap"


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        number: Its index in nvidia-smi.
        name: Name of the product.
        total_bytes: Its memory.
        free_bytes: Memory that no process uses.
        capability: Compute capability, such as (8, 9).
    """

    number: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]


def gpus(limit_s: float = 5.0) -> list[Gpu]:
    """Return the GPUs of this machine; none if nvidia-smi is missing, fails, or takes longer than `limit_s` seconds.

    GPUs without memory of their own, which share the host's, are left out.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit_s)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    return [gpu for line in found.stdout.splitlines() if (gpu := _gpu(line)) is not None]


def gpu_number(text: str) -> int:
    """Parse the number of a GPU, for argparse."""
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"expected the number of a GPU, from 0, got {text!r}")
    return int(text)


def _gpu(line: str) -> Gpu | None:
    """Return the GPU in a line of nvidia-smi; None if a value is not known."""
    try:
        number, name, total, free, capability = (cell.strip() for cell in line.split(","))
        major, minor = map(int, capability.split("."))
        return Gpu(int(number), name, int(total) * MIB, int(free) * MIB, (major, minor))
    except ValueError:
        return None
