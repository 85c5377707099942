"""Memory, disk and processors of this machine, and the processes that hold them."""

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from stretto.engine.environment import is_cpu_build
from stretto.launcher.processes import GONE, PROC
from stretto.launcher.running import RunningServer, memory_bytes, running_servers
from stretto.machine.gpus import Gpu, gpus, processes
from stretto.releases.printing import gigabytes

__all__ = [
    "Gpu",
    "available_memory",
    "copy_bandwidth",
    "existing",
    "free_disk",
    "gpus",
    "has_cuda_vllm",
    "has_vnni",
    "product_rate",
    "total_memory",
]

CGROUPS = Path("/sys/fs/cgroup")
KIB = 1 << 10
COPIED_BYTES = 256_000_000
PRODUCT_WIDTH = 1_024
NUM_PRODUCTS = 5


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how many bytes of memory a new process may use: the least that the machine and its cgroups leave.

    Args:
        proc: Mount point of procfs.
        cgroups: Mount point of the cgroup file systems.
    """
    return min([_of_meminfo(proc, "MemAvailable"), *(limit - used for limit, used in _cgroups(proc, cgroups))])


def total_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the memory of this machine in bytes, or a cgroup's limit if it is lower.

    Args:
        proc: Mount point of procfs.
        cgroups: Mount point of the cgroup file systems.
    """
    return min([_of_meminfo(proc, "MemTotal"), *(limit for limit, _ in _cgroups(proc, cgroups))])


def has_vnni(proc: Path = PROC) -> bool:
    """Return True if the processor has fast products of 8-bit integers."""
    return re.search(r"^flags\b.*\b(avx512_vnni|avx_vnni)\b", (proc / "cpuinfo").read_text(), re.MULTILINE) is not None


def _of_meminfo(proc: Path, name: str) -> int:
    lines = (proc / "meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith(f"{name}:"))


def _cgroups(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of memory of each cgroup of this process in bytes, without page cache, which can be freed."""
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root = cgroups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        elif not controllers:
            root = cgroups
            names = ("memory.max", "memory.current", "")
        else:
            continue
        # In a container, the path may be the host's, and the root is the container's own group.
        folder = root / path.lstrip("/")
        for group in [folder, *folder.parents][: len(folder.parts) - len(root.parts) + 1]:
            if (limit_and_use := _limit_and_use(group, *names)) is not None:
                yield limit_and_use


def _limit_and_use(folder: Path, limit: str, used: str, prefix: str) -> tuple[int, int] | None:
    """Return limit and use of one cgroup; None if it has no limit, or if the folder is not a cgroup's."""
    try:
        limit_text = (folder / limit).read_text().strip()
        size = int((folder / used).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    cached = sum(int(counts.get(f"{prefix}{state}_file", 0)) for state in ("active", "inactive"))
    return None if limit_text == "max" else (int(limit_text), max(size - cached, 0))


def has_cuda_vllm() -> bool:
    """Return True if the installed vLLM is built for CUDA; vLLM is not imported."""
    try:
        return not is_cpu_build()
    except PackageNotFoundError:
        return False


def copy_bandwidth() -> float:
    """Return how many bytes one core reads and writes per second of its time, measured with a copy in about 0.2 s."""
    source = bytearray(b"\1") * COPIED_BYTES
    copy = bytearray(b"\1") * COPIED_BYTES
    began = time.process_time()
    memoryview(copy)[:] = source
    return 2 * COPIED_BYTES / (time.process_time() - began)


def product_rate() -> float:
    """Return how many operations of float32 products one core computes per second of its time, measured in 0.1 s."""
    import numpy as np  # here, because most commands import this module and need no arrays

    factor = np.ones((PRODUCT_WIDTH, PRODUCT_WIDTH), np.float32)
    factor[:64] @ factor  # starts the threads
    began = time.process_time()
    for _ in range(NUM_PRODUCTS):
        factor @ factor
    return NUM_PRODUCTS * 2 * PRODUCT_WIDTH**3 / (time.process_time() - began)


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest of its parents that exists."""
    folder = folder.absolute()
    return next(ancestor for ancestor in (folder, *folder.parents) if ancestor.exists())


def free_disk(folder: Path) -> int:
    """Return the free bytes of the file system on which a folder is, or would be created."""
    return shutil.disk_usage(existing(folder)).free


HELD_BYTES = 500_000_000  # processes with less are not named
MAX_NAMED = 4


def holders(gpu: int | None) -> str:
    """Return the largest holders in words, a server of this user with all its processes; empty if none is known.

    Args:
        gpu: Number of the GPU in nvidia-smi; None for the main memory.
    """
    servers = {pid: server for server in running_servers() for pid in pids_of(server)}
    held = Counter[str]()
    for pid, name, num_bytes in _in_memory() if gpu is None else _on_gpu(gpu):
        server = servers.get(pid)
        held[f"{name} (pid {pid})" if server is None else _title(server)] += num_bytes
    largest = [(name, size) for name, size in held.most_common(MAX_NAMED) if size >= HELD_BYTES]
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in largest)


def pids_of(server: RunningServer) -> list[int]:
    """Return the process ids of a launcher and of all processes that it has started."""
    return [server.pid, *(process.pid for process in server.processes())]


def _title(server: RunningServer) -> str:
    name = "a server" if server.model is None else server.model.name
    return f"{name} (port {server.ports.get('http', 0)}, stretto serve --stop)"


def _on_gpu(number: int) -> Iterator[tuple[int, str, int]]:
    """Yield pid, name and memory of the processes on a GPU."""
    for process in processes(number):
        yield process.pid, Path(process.name).name, process.num_bytes


def _in_memory() -> Iterator[tuple[int, str, int]]:
    """Yield pid, name and memory of the processes whose memory this user may read."""
    for path in PROC.glob("[0-9]*/comm"):
        with suppress(*GONE):
            name = path.read_text().strip()
            pid = int(path.parent.name)
            yield pid, name, memory_bytes([pid])
