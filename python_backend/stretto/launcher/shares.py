"""Assignment of this machine's GPUs or cores to the replicas of a server."""

import argparse
import os
from dataclasses import dataclass

from stretto.launcher.installation import LaunchError
from stretto.machine.gpus import gpus

ALL = "all"
MAX_REPLICAS = 64
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Share:
    """Share of this machine that a replica gets.

    Attributes:
        gpu: Its value of CUDA_VISIBLE_DEVICES; None without a GPU.
        cores: Its cores; all of them if it has a GPU.
    """

    gpu: str | None
    cores: frozenset[int]

    def environment(self) -> dict[str, str]:
        return {} if self.gpu is None else {VISIBLE: self.gpu}


def number_of_replicas(text: str) -> int | str:
    """Parse a number of replicas, or `all`, for argparse."""
    if text == ALL:
        return ALL
    if not text.isdecimal() or not 0 < int(text) <= MAX_REPLICAS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MAX_REPLICAS}, or {ALL}, got {text!r}")
    return int(text)


def visible_gpus() -> list[str]:
    """Return this machine's GPUs in the notation of CUDA_VISIBLE_DEVICES; if that variable is set, only its GPUs."""
    named = os.environ.get(VISIBLE)
    if named is None:
        return [str(gpu.number) for gpu in gpus()]
    return [word.strip() for word in named.split(",") if word.strip()]


def shares_of(wanted: int | str) -> list[Share]:
    """Return the share of each replica, a GPU or without GPUs equally many cores; raise LaunchError if too few."""
    cores = sorted(os.sched_getaffinity(0))
    devices = [] if wanted == 1 else visible_gpus()
    if devices:
        num_replicas = len(devices) if wanted == ALL else int(wanted)
        if num_replicas > len(devices):
            raise LaunchError(f"--replicas: expected at most {len(devices)}, one for each GPU, got {num_replicas}")
        return [Share(device, frozenset(cores)) for device in devices[:num_replicas]]
    if wanted == ALL:
        raise LaunchError(f"--replicas {ALL}: expected GPUs on this machine, got none; give a number of replicas")
    num_replicas = int(wanted)
    if num_replicas > len(cores):
        raise LaunchError(f"--replicas: expected at most {len(cores)}, the number of cores, got {num_replicas}")
    size = len(cores) // num_replicas
    return [Share(None, frozenset(cores[number * size : (number + 1) * size])) for number in range(num_replicas)]


def take(share: Share) -> None:
    """Confine this process, and all that it starts from now on, to a share."""
    os.environ.update(share.environment())
    os.sched_setaffinity(0, share.cores)
