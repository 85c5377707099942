"""Times at which a request is passed from one thread or process to the next, for `benchmarks.gpu.served --trace`.

`stamp` does nothing unless the environment variable STRETTO_HOPS names a folder when the process starts.
"""

import os
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

FOLDER = "STRETTO_HOPS"  # environment variable: folder of the files, one per process


class Hop(StrEnum):
    """Points at which a request is passed on, from its arrival to its first audio, in order."""

    CLIENT_SENDS = "client sends the request"
    PROXY_READS = "proxy reads it"
    PROXY_FORWARDS = "proxy forwards it"
    PREPROCESSOR_BEGINS = "preprocessor begins"
    PREPROCESSOR_ANSWERS = "preprocessor answers"
    MODEL_ACCEPTS = "language model's process accepts the prompt"
    ENGINE_IS_ASKED = "prompt is sent to the engine"
    ENGINE_ACCEPTS = "engine accepts it"
    STEP_ENDS = "engine has the last row of the first chunk"
    ROW_ARRIVES = "language model's process has this row"
    CHUNK_IS_CUT = "first chunk with audio is complete"
    CHUNK_IS_SENT = "it is sent"
    DECODER_ACCEPTS = "decoder accepts it"
    BATCH_IS_LAUNCHED = "batch is launched"
    SAMPLES_ARRIVE = "samples are on the host"
    DECODER_ANSWERS = "decoder answers"
    PROXY_READS_ANSWER = "proxy reads the answer"
    CLIENT_HEARS = "client has the samples"


def stamps_in(folder: Path) -> Callable[[Hop], None]:
    """Return a function that appends a hop and the current time to this process's file in `folder`."""
    descriptor = os.open(folder / str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def stamp(hop: Hop) -> None:
        os.write(descriptor, f"{time.monotonic_ns()} {hop.name}\n".encode())

    return stamp


def ignore(hop: Hop) -> None:
    """Do nothing with the hop, because no times are recorded."""


stamp = stamps_in(Path(os.environ[FOLDER])) if FOLDER in os.environ else ignore


def read_stamps(folder: Path) -> list[tuple[float, Hop]]:
    """Return the hops of all processes with their times in seconds on the clock `time.monotonic`, in order of time."""
    lines = [line.split() for path in folder.iterdir() for line in path.read_text().splitlines()]
    return sorted((int(nanoseconds) / 1e9, Hop[name]) for nanoseconds, name in lines)
