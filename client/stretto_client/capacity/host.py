"""Description of this machine for a measurement: processor, cores, GPUs and other load."""

import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
BUSY_SHARE = 0.1  # share of the cores beyond which other processes change the result
WATCHED_S = 1.0


@dataclass(frozen=True, slots=True)
class Host:
    """A machine before a measurement.

    Attributes:
        cores: Number of cores that this process may use.
        busy_cores: Number of cores that all programs together used in the last second.
    """

    processor: str
    cores: int
    gpus: tuple[str, ...]
    load_average: float
    busy_cores: float

    @property
    def is_busy(self) -> bool:
        return self.busy_cores > BUSY_SHARE * self.cores

    def describe(self) -> str:
        """Return a line with GPUs, processor, cores and load."""
        names = [f"{self.gpus.count(name)} × {name}" for name in dict.fromkeys(self.gpus)]
        names += [self.processor, f"{self.cores} cores", f"load average {self.load_average:.2f}"]
        return ", ".join(names)


def host(gpus: tuple[str, ...]) -> Host:
    """Return a description of this machine, whose load is watched for a second."""
    return Host(
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        gpus=gpus,
        load_average=os.getloadavg()[0],
        busy_cores=busy_cores(),
    )


def processor_name(proc: Path = PROC) -> str:
    """Return the processor's name."""
    path = proc / "cpuinfo"
    match = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return match[1].strip() if match is not None else platform.processor() or platform.machine()


def busy_cores(seconds: float = WATCHED_S, proc: Path = PROC) -> float:
    """Return how many cores were busy during the next `seconds`; 0 if the system does not report it."""
    if not (proc / "stat").exists():
        return 0.0
    before = busy_ticks(proc)
    begun = time.monotonic()
    time.sleep(seconds)
    return (busy_ticks(proc) - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begun)


def busy_ticks(proc: Path = PROC) -> int:
    """Return the processor time of all programs so far, in clock ticks."""
    user, nice, system, _, _, irq, softirq = map(int, (proc / "stat").read_text().split(maxsplit=8)[1:8])
    return user + nice + system + irq + softirq
