"""Estimates of the memory, disk space and time that a release needs, and the choice of the device that serves it.

In messages, a GB has 1e9 bytes.
"""

import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np

from stretto.codecs.decoder_sizes import UNKNOWN, DecoderSize
from stretto.engine.environment import is_cpu_build
from stretto.family.base import Family
from stretto.family.plugin import decoder_size, plugin
from stretto.launcher.processes import GONE, PROC
from stretto.launcher.running import RunningServer, memory_bytes, running_servers
from stretto.machine.gpus import MIB, Gpu, gpus, processes
from stretto.machine.sizing import (
    BYTES,
    DECODER_LIBRARY_BYTES,
    WORKSPACE_BYTES,
    Backbone,
    Depth,
    Needs,
    cpu_cache_bytes,
    cpu_slots,
    engine_bytes,
    latent_bytes,
    longest_rows,
    num_slots,
)
from stretto.releases.catalogue import ReleaseEntry, find
from stretto.releases.messages import BadArgument, DoesNotFit, gigabytes, line

GB = 1_000_000_000
PROCESS_BYTES = 1_600_000_000  # all processes on a CPU (measured: proportional set size with a model of 45 MB)
SPARE_DISK_BYTES = GB  # left on each file system
IDLE_BYTES = GB  # the driver holds less of an idle GPU
# Files with at least this many bytes for each weight of the language model are in float32, which takes 4. Files in 16
# bits take 2, or up to 3.3 with the codec.
FLOAT32_BYTES = 3.8
# keys of `ReleaseEntry.shape`
SPEAKER = "speaker"
CODEC = "codec"


@dataclass(frozen=True)
class Device:
    """Device that serves a release.

    Attributes:
        gpu: Number of a GPU in nvidia-smi; None for the CPU.
    """

    gpu: int | None
    why: str


@dataclass(frozen=True)
class Need:
    """Estimated memory in bytes that a server of a release needs.

    Attributes:
        weights: Weights of all language models; on a CPU with those of the codec.
        cache: KV caches, and tables of speaker vectors and latents; on a CPU with rows of voices in the codec.
        codec: Decoder with the codec on a GPU; 0 on a CPU.
        processes: All processes without a model; on a GPU with activations and CUDA graphs.
    """

    weights: int
    cache: int
    codec: int
    processes: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.codec + self.processes


def need(entry: ReleaseEntry, num_weight_bytes: int, is_on_gpu: bool) -> Need:
    """Return the estimated memory that a release needs.

    On a GPU, it is computed like that of an installed model (`Needs`), with the decoder of a codec of published size.
    Without `entry.shape`, the KV cache is unknown and counts as 0. A release in float16 needs more on a CPU, which
    computes in float32. Latents are computed in float32 on all devices. A speaker has an engine of its own.
    """
    shape = backbone(entry)
    speaker = speaker_of(entry)
    if is_on_gpu:
        weights = num_weight_bytes if shape is None else _served_bytes(entry, BYTES) * shape.weights
        cache, tables = (0, 0) if shape is None else _stream_bytes(entry, shape)
        spoken = (0, 0) if speaker is None else _speaker_bytes(speaker)
        needs = Needs(
            _decoder_bytes(entry), None, weights, tables, cache, speaker=engine_bytes(*spoken) if speaker else 0
        )
        weights = weights + spoken[0]
        cache = tables + cache + spoken[1]
        return Need(weights, cache, needs.decoder, needs.total - weights - cache - needs.decoder)
    if shape is None:
        return Need(num_weight_bytes, 0, 0, PROCESS_BYTES)
    stored = _stored_bytes(shape, num_weight_bytes)
    served = _served_bytes(entry, stored)
    caches = sum(
        _batch_cache_bytes(served_entry, served, is_on_gpu=False)
        for served_entry in (entry, speaker)
        if served_entry is not None
    )
    caches += decoder_size(_family(entry).codec).voices_bytes
    return Need(num_weight_bytes * served // stored, caches, 0, PROCESS_BYTES)


def backbone(entry: ReleaseEntry) -> Backbone | None:
    """Return the sizes of a release's language model, or None if they are unknown.

    For a release with two models, the sizes are the writer's.
    """
    if entry.shape is None:
        return None
    numbers = {name: value for name, value in entry.shape.items() if name not in (SPEAKER, CODEC)}
    depth = numbers.pop("depth", None)
    return Backbone(name=entry.name, **numbers, depth=None if depth is None else Depth(**depth))


def speaker_of(entry: ReleaseEntry) -> ReleaseEntry | None:
    """Return the entry of the speaker's model, which `entry.shape` describes; None without a speaker."""
    speaker = (entry.shape or {}).get(SPEAKER)
    if speaker is None:
        return None
    numbers = {name: value for name, value in speaker.items() if name != "family"}
    return replace(entry, family=speaker["family"], shape=numbers)


def _decoder_bytes(entry: ReleaseEntry) -> int:
    """Return the memory of the decoder on a GPU.

    If the family is not installed any more, the codec is unknown. If the release lacks its family's speaker, it
    generates only text, so its decoder has no codec.
    """
    family_plugin = plugin(entry.family)
    family = None if family_plugin is None else family_plugin.build(None)
    if family is not None and _writes_only(entry, family):
        return DECODER_LIBRARY_BYTES + WORKSPACE_BYTES
    return (UNKNOWN if family is None else decoder_size(family.codec)).gpu_bytes


def _writes_only(entry: ReleaseEntry, family: Family) -> bool:
    """Return True if a release of a family with a speaker lacks the speaker."""
    return family.mechanism.speaker is not None and entry.shape is not None and SPEAKER not in entry.shape


def _spoken_size(entry: ReleaseEntry) -> DecoderSize:
    """Return the size of the decoder of a release's speech; UNKNOWN if it generates none."""
    family = _family(entry)
    if _writes_only(entry, family) or not any(task.speaks for task in family.tasks):
        return UNKNOWN
    return decoder_size((entry.shape or {}).get(CODEC, family.codec))


def _stream_bytes(entry: ReleaseEntry, shape: Backbone) -> tuple[int, int]:
    """Return the size of a GPU's KV cache with one stream of maximum length, and of all tables."""
    family = _family(entry)
    slots = num_slots(shape.table_bytes + decoder_size(family.codec).state_bytes, is_on_gpu=True)
    rows = longest_rows(family, family.max_model_len, shape.kv_window, is_on_gpu=True)
    tables = slots * shape.table_bytes + latent_bytes(family, slots, family.max_model_len)
    return rows * shape.kv_bytes * _served_bytes(entry, BYTES) // BYTES, tables


def _speaker_bytes(speaker: ReleaseEntry) -> tuple[int, int]:
    """Return the sizes of a speaker's weights on a GPU, and of its KV cache and tables."""
    shape = backbone(speaker)
    stored = _served_bytes(speaker, BYTES)
    assert shape is not None
    return stored * shape.weights, _batch_cache_bytes(speaker, stored, is_on_gpu=True)


def _batch_cache_bytes(entry: ReleaseEntry, number_bytes: int, is_on_gpu: bool) -> int:
    """Return the size of the KV cache that `make-repository` chooses for a CPU or a speaker, and of all tables."""
    shape = backbone(entry)
    family = _family(entry)
    assert shape is not None
    longest = family.max_model_len
    row_bytes = shape.kv_bytes * number_bytes // BYTES
    slots = num_slots(shape.table_bytes * number_bytes // BYTES + decoder_size(family.codec).state_bytes, is_on_gpu)
    if not is_on_gpu:
        slots = cpu_slots(family, longest, shape.kv_window, row_bytes, slots)
    tables = slots * shape.table_bytes * number_bytes // BYTES + latent_bytes(family, slots, longest)
    return cpu_cache_bytes(family, longest, shape.kv_window, row_bytes, slots) + tables


def _family(entry: ReleaseEntry) -> Family:
    """Return the family of an entry with its published vocabulary. The family must be installed."""
    family_plugin = plugin(entry.family)
    assert family_plugin is not None
    return family_plugin.build(None)


def _served_bytes(entry: ReleaseEntry, stored: int) -> int:
    """Return the bytes per number of a served model: 4 for a family whose frames are latents, else `stored`."""
    return 2 * BYTES if _family(entry).layout.latents is not None else stored


def _stored_bytes(shape: Backbone, num_weight_bytes: int) -> int:
    """Return the bytes per number of a release, 4 or 2, by the size of its files."""
    return 2 * BYTES if num_weight_bytes >= FLOAT32_BYTES * shape.weights else BYTES


def choose(entry: ReleaseEntry, num_weight_bytes: int, gpu: int | None, cpu: bool) -> Device:
    """Return the device for a release; raise BadArgument if there is no GPU of this number.

    The device is the given GPU, or else the GPU with the most free memory. It is the CPU if `cpu` is True or no GPU is
    usable.
    """
    on_gpu = need(entry, num_weight_bytes, is_on_gpu=True).total
    on_cpu = f"CPU: needs about {gb(need(entry, num_weight_bytes, is_on_gpu=False).total)}"
    on_cpu += f" of {gb(available_memory())} GB that are free (estimate)"
    serves_gpus = has_cuda_vllm()
    if serves_gpus:
        on_cpu += "; the installed vLLM is for GPUs and does not run on a CPU (docs/install.md)"
    if cpu:
        return Device(None, on_cpu)
    freest = sorted(gpus(), key=lambda candidate: candidate.free_bytes, reverse=True)
    if gpu is not None:
        chosen = _gpu_of(freest, gpu)
        return Device(gpu, _why(chosen, on_gpu) + ("" if serves_gpus else f"; {REMEDY}"))
    if not freest:
        return Device(None, on_cpu)
    best = next((candidate for candidate in freest if on_gpu <= candidate.free_bytes), freest[0])
    if not serves_gpus:
        return Device(None, f"{on_cpu}; {best.name} is not used, because {REMEDY}")
    return Device(best.number, _why(best, on_gpu))


REMEDY = "the installed vLLM is for CPUs (docs/install.md describes the image for GPUs)"


def _gpu_of(all_gpus: list[Gpu], number: int) -> Gpu:
    for gpu in all_gpus:
        if gpu.number == number:
            return gpu
    numbers = ", ".join(str(gpu.number) for gpu in sorted(all_gpus, key=lambda gpu: gpu.number))
    raise BadArgument(f"--gpu: expected the number of a GPU ({numbers or 'nvidia-smi shows none'}), got {number}")


def _why(gpu: Gpu, num_bytes: int) -> str:
    free = f"{gb(gpu.free_bytes)} of {gb(gpu.total_bytes)} GB free"
    return f"{gpu.name}, {free}: needs about {gb(num_bytes)} GB for one stream (estimate)"


def held_mb(gpu: int) -> int:
    """Return the memory of a GPU that other processes hold, in MiB, and print it; 0 if they hold little.

    vLLM's share of the GPU must be reduced by it, because vLLM refuses to start if less than its share is free.
    """
    for device in gpus():
        held = device.total_bytes - device.free_bytes
        if device.number == gpu and held > IDLE_BYTES:
            free = f"{gb(device.free_bytes)} of {gb(device.total_bytes)} GB are free"
            line("memory", f"{device.name}: {free}; gpu_memory_utilization is lowered accordingly")
            return -(-held // MIB)
    return 0


def check(entry: ReleaseEntry, num_weight_bytes: int, device: Device) -> None:
    """Raise DoesNotFit if a release needs more memory than its device has free; name any smaller release."""
    if device.gpu is None:
        _check_cpu(entry, num_weight_bytes)
    else:
        _check_gpu(entry, num_weight_bytes, _gpu_of(gpus(), device.gpu))


def _check_cpu(entry: ReleaseEntry, num_weight_bytes: int) -> None:
    needed = need(entry, num_weight_bytes, is_on_gpu=False).total
    total = total_memory()
    free = available_memory()
    if needed > min(total, free):
        held = _held(None) if needed <= total else ""
        raise DoesNotFit(
            f"{entry.name} needs about {gb(needed)} GB of memory (estimate), this machine has {gb(total)} GB of which"
            f" {gb(free)} are free{held}{_smaller(entry, is_on_gpu=False)}"
        )


def _held(gpu: int | None) -> str:
    """Return a message part that names the processes that hold the memory; empty if none is known."""
    processes = holders(gpu)
    return f"; it is held by {processes}" if processes else ""


def _check_gpu(entry: ReleaseEntry, num_weight_bytes: int, gpu: Gpu) -> None:
    needed = need(entry, num_weight_bytes, is_on_gpu=True).total
    if needed <= gpu.free_bytes:
        return
    message = (
        f"{entry.name} needs about {gb(needed)} GB of GPU memory (estimate), {gpu.name} has {gb(gpu.total_bytes)} GB of"
        f" which {gb(gpu.free_bytes)} are free"
    )
    if needed <= gpu.total_bytes:
        message += _held(gpu.number)
    if not has_cuda_vllm():
        on_cpu = need(entry, num_weight_bytes, is_on_gpu=False).total
        message += f"; --cpu needs about {gb(on_cpu)} GB, {gb(available_memory())} are free"
    raise DoesNotFit(message + _smaller(entry, is_on_gpu=True))


def _smaller(entry: ReleaseEntry, is_on_gpu: bool) -> str:
    """Return a message part that suggests the smaller release; empty if there is none."""
    smaller = None if entry.smaller is None else find(entry.smaller)
    if smaller is None:
        return ""
    # The table has the sizes of some files only.
    shape = backbone(smaller)
    num_bytes = sum(smaller.source.sizes.values())
    num_bytes = num_bytes if shape is None else max(num_bytes, BYTES * shape.weights)
    if not num_bytes:
        return f"; {smaller.name} is smaller (--or-smaller)"
    return f"; {smaller.name} needs about {gb(need(smaller, num_bytes, is_on_gpu).total)} GB (--or-smaller)"


def check_disk(needs: Mapping[Path, int]) -> None:
    """Raise DoesNotFit if a file system has too little space for these bytes by folder, and 1 GB to spare."""
    written = defaultdict[int, int](int)
    folders = defaultdict[int, list[Path]](list)
    for folder, num_bytes in needs.items():
        disk = existing(folder).stat().st_dev
        written[disk] += num_bytes
        folders[disk].append(folder)
    for disk, num_bytes in written.items():
        needed = num_bytes + SPARE_DISK_BYTES
        free = free_disk(folders[disk][0])
        if num_bytes and needed > free:
            places = " and ".join(map(_home_relative, folders[disk]))
            raise DoesNotFit(
                f"needs {gb(needed)} GB in {places}, {gb(free)} GB are free; STRETTO_MODELS and HF_HOME choose other"
                " places"
            )


def _home_relative(folder: Path) -> str:
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def speed_line(entry: ReleaseEntry, num_weight_bytes: int, bandwidth: float, rate: float) -> str | None:
    """Return a line that states how much slower than real time a release is on a CPU.

    The result is None if it is not slower, or if that is unknown. Language model and codec compute with one core each,
    at the same time unless the codec begins after the last frame. For the language model, the time to read all weights
    for each frame counts, because a CPU waits mostly for its memory. For the codec, the time for its operations counts.
    Encoding of recordings is not counted.

    Args:
        bandwidth: Bytes per second.
        rate: Operations per second.
    """
    shape = backbone(entry)
    if shape is None:
        return None
    scale = _served_bytes(entry, _stored_bytes(shape, num_weight_bytes)) // BYTES
    seconds = {"language model": shape.frame_rate * scale * shape.frame_bytes / bandwidth}
    size = _spoken_size(entry)
    if size.gflop_per_s:
        seconds["codec"] = 1e9 * size.gflop_per_s / rate
    ratio = sum(seconds.values()) if size.is_whole else max(seconds.values())
    if ratio <= 1:
        return None
    times = f"{ratio:.0f}" if ratio >= 2 else f"{ratio:.1f}"
    parts = ", ".join(f"{name} {seconds_needed:.1f} s" for name, seconds_needed in seconds.items())
    return f"about {times} times slower than real time (estimate for a second of audio: {parts})"


def gb(num_bytes: float) -> str:
    """Return a size in GB with one decimal."""
    return f"{num_bytes / GB:.1f}"


# Free memory of this machine, and the processes that use the rest.

CGROUPS = Path("/sys/fs/cgroup")
KIB = 1 << 10
COPIED_BYTES = 256_000_000
PRODUCT_WIDTH = 1_024
NUM_PRODUCTS = 5


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the memory in bytes that a new process may use: what this machine and its cgroups have left."""
    return min([_of_meminfo(proc, "MemAvailable"), *(limit - used for limit, used in _cgroups(proc, cgroups))])


def total_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the memory of this machine in bytes, or a cgroup's limit if it is lower."""
    return min([_of_meminfo(proc, "MemTotal"), *(limit for limit, _ in _cgroups(proc, cgroups))])


def has_vnni(proc: Path = PROC) -> bool:
    """Return True if the processor has fast products of 8-bit integers."""
    return re.search(r"^flags\b.*\b(avx512_vnni|avx_vnni)\b", (proc / "cpuinfo").read_text(), re.MULTILINE) is not None


def _of_meminfo(proc: Path, name: str) -> int:
    lines = (proc / "meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith(f"{name}:"))


def _cgroups(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of memory in bytes of each cgroup of this process, without page cache, which can be freed."""
    for group_line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = group_line.split(":", 2)
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
    """Return True if the installed vLLM is built for CUDA, without importing it."""
    try:
        return not is_cpu_build()
    except PackageNotFoundError:
        return False


@cache
def copy_bandwidth() -> float:
    """Return how many bytes one core reads and writes per second, measured once with a copy that takes 0.2 s."""
    source = bytearray(b"\1") * COPIED_BYTES
    copy = bytearray(b"\1") * COPIED_BYTES
    began = time.process_time()
    memoryview(copy)[:] = source
    return 2 * COPIED_BYTES / (time.process_time() - began)


@cache
def product_rate() -> float:
    """Return how many float32 operations of matrix products one core computes per second, measured once."""
    factor = np.ones((PRODUCT_WIDTH, PRODUCT_WIDTH), np.float32)
    factor[:64] @ factor  # starts torch's threads
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
    """Describe the programs that hold most memory of a GPU or, for None, of the machine; empty if none is known.

    A server of this user counts as one program.
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
    for process in processes(number):
        yield process.pid, Path(process.name).name, process.num_bytes


def _in_memory() -> Iterator[tuple[int, str, int]]:
    """Yield pid, name and memory of the processes whose memory this user may read."""
    for path in PROC.glob("[0-9]*/comm"):
        with suppress(*GONE):
            name = path.read_text().strip()
            pid = int(path.parent.name)
            yield pid, name, memory_bytes([pid])
