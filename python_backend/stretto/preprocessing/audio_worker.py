"""The program of a process that reads audio for another: jobs on standard input, answers on standard output.

    job      {"field": …, "is_file": …, "sample_rate": …, "num_bytes": …, "max_s": …, "rate": …}   a line of JSON
    answer   {"samples": n} | {"refused": [field, expected, got]} | {"failed": …}                  a line of JSON

The audio of a job lies in shared memory, a file that both have open; the samples of its answer lie there after it.
"""

import json
import os
import resource
import sys
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import decode, read_samples, resample

MAX_CPU_S = 60  # of one job; a file on which a decoder runs for ever ends this process and not the service
MAX_MEMORY_BYTES = 2 << 30  # of address space; 70 KB of MP4 can declare tables that take gigabytes


def main() -> None:
    """Answer jobs until there are no more."""
    memory, niceness = int(sys.argv[1]), int(sys.argv[2])
    # Not relative to its parent, whose priority may be raised only while models load (serving/priority.py).
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    limit_memory()
    for line in sys.stdin:
        limit_cpu()
        print(json.dumps(answer(memory, json.loads(line))), flush=True)


def limit_memory() -> None:
    """Let allocations fail, and with them the job, where a file would take all memory of the host."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def limit_cpu() -> None:
    """End this process when the job to come takes longer than any should."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + MAX_CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def answer(memory: int, job: dict[str, Any]) -> dict[str, Any]:
    """What became of a job; its samples are in `memory`."""
    try:
        pcm = read(memory, job)
    except InvalidRequest as error:
        return {"refused": [error.field, error.expected, str(error.got)]}
    except MemoryError:
        return {"refused": [job["field"], f"audio that is read in {MAX_MEMORY_BYTES >> 30} GiB of memory", "more"]}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    os.ftruncate(memory, 0)
    os.pwrite(memory, np.ascontiguousarray(pcm, np.float32).data, 0)
    return {"samples": len(pcm)}


def read(memory: int, job: dict[str, Any]) -> np.ndarray:
    """The samples of a job."""
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
