"""Program of an audio process: reads jobs from standard input and writes results to standard output.

    job      {"field": …, "is_file": …, "sample_rate": …, "num_bytes": …, "max_s": …, "rate": …}   a line of JSON
    answer   {"samples": n} | {"refused": [field, expected, got]} | {"failed": …}                  a line of JSON

A job's audio is in a shared-memory file that both processes have open, and is replaced by the resulting samples.
"""

import json
import os
import resource
import sys
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import decode, read_samples, resample

MAX_CPU_S = 60  # per job, so that an endless loop in a decoder ends this process only
MAX_MEMORY_BYTES = 2 << 30  # address space; a 70 KB MP4 file can declare tables of several gigabytes


def main() -> None:
    """Process jobs until standard input is closed."""
    memory, niceness = int(sys.argv[1]), int(sys.argv[2])
    # Absolute, because the parent's priority may be raised temporarily while models load (launcher/processes.py).
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    limit_memory()
    for line in sys.stdin:
        limit_cpu()
        print(json.dumps(answer(memory, json.loads(line))), flush=True)


def limit_memory() -> None:
    """Limit the address space, so that a file that needs too much memory fails only its own job."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def limit_cpu() -> None:
    """Limit the CPU time of the next job; the kernel kills this process if the job exceeds the limit."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + MAX_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def answer(memory: int, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job and return its answer; the samples replace the job's audio in the file descriptor `memory`."""
    try:
        pcm = read(memory, job)
        os.ftruncate(memory, 0)
        write(memory, np.ascontiguousarray(pcm, np.float32).data.cast("B"))
    except InvalidRequest as error:
        return {"refused": [error.field, error.expected, str(error.got)]}
    except MemoryError:
        return {
            "refused": [job["field"], f"audio that can be read within {MAX_MEMORY_BYTES >> 30} GiB of memory", "more"]
        }
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"samples": len(pcm)}


def write(memory: int, data: memoryview) -> None:
    """Write `data` at the start of the file `memory`; raise OSError if there is not enough space."""
    num_written = 0
    while num_written < len(data):  # the kernel may write fewer bytes than requested
        num_written += os.pwrite(memory, data[num_written:], num_written)


def read(memory: int, job: dict[str, Any]) -> np.ndarray:
    """Return the decoded samples of a job, float32 [n]."""
    max_s, rate = job["max_s"], job["rate"]
    os.lseek(memory, 0, os.SEEK_SET)
    if job["is_file"]:
        pcm, sample_rate = decode(memory, max_s, job["field"])
        return resample(pcm, sample_rate, rate)
    pcm = np.empty(job["num_bytes"] // 4, np.float32)
    os.preadv(memory, [pcm.data], 0)
    return read_samples(pcm, job["sample_rate"], max_s, rate)


if __name__ == "__main__":
    main()
