"""GPUs of this machine, as nvidia-smi reports them, and the types of GPU options on a command line."""

import argparse
import math
import shutil
import subprocess
from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30
NVIDIA_SMI_S = 30.0
MAX_DIGITS = 4  # of a GPU's number
FIELDS = "index,name,memory.total,memory.free,compute_cap"
PROCESS_FIELDS = "pid,used_memory,process_name"  # a name may contain commas


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        number: Index in nvidia-smi.
        capability: Compute capability, such as (8, 9).
    """

    number: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU.

    Attributes:
        pid: Process id; in a container, that of the host.
        name: Path of its program.
        num_bytes: Memory that it holds; 0 if it is unknown.
    """

    pid: int
    name: str
    num_bytes: int


def gpus(limit_s: float = 5.0) -> list[Gpu]:
    """Return the GPUs with memory of their own; none if nvidia-smi fails or takes longer than `limit_s`."""
    return [gpu for line in _query(limit_s, f"--query-gpu={FIELDS}") if (gpu := _gpu(line)) is not None]


def bytes_of_gpu(number: int) -> int | None:
    """Return the memory of a GPU of this machine; None if nvidia-smi does not list the GPU."""
    return next((gpu.total_bytes for gpu in gpus(NVIDIA_SMI_S) if gpu.number == number), None)


def processes(number: int, limit_s: float = 5.0) -> list[GpuProcess]:
    """Return the processes that hold memory of a GPU, as far as nvidia-smi lists them."""
    lines = _query(limit_s, f"--query-compute-apps={PROCESS_FIELDS}", f"--id={number}")
    return [process for line in lines if (process := _process(line)) is not None]


def _query(limit_s: float, *arguments: str) -> list[str]:
    """Return the lines that nvidia-smi prints; none if it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, *arguments, "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=limit_s
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []


def gpu_number(text: str) -> int:
    """Parse the number of a GPU, for argparse."""
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"expected the number of a GPU, from 0, got {text!r}")
    return int(text)


def percentage(text: str) -> int:
    """Parse a share of a GPU in percent, for argparse."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"expected an integer from 1 to 100, got {text!r}")
    return int(text)


def gibibytes(text: str) -> float:
    """Parse the memory of a GPU in GiB, for argparse."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of GiB above 0, got {text!r}")
    return size


def _gpu(line: str) -> Gpu | None:
    """Parse a line of nvidia-smi; return None if a value is not known."""
    try:
        number, name, total, free, capability = (cell.strip() for cell in line.split(","))
        major, minor = map(int, capability.split("."))
        return Gpu(int(number), name, int(total) * MIB, int(free) * MIB, (major, minor))
    except ValueError:
        return None


def _process(line: str) -> GpuProcess | None:
    """Parse a line of nvidia-smi; return None if its pid is not known."""
    cells = [cell.strip() for cell in line.split(",", 2)]
    if len(cells) < 3 or not cells[0].isdecimal():
        return None
    pid, used, name = cells
    return GpuProcess(int(pid), name, int(used) * MIB if used.isdecimal() else 0)
