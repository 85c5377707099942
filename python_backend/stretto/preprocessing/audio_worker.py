"""Program of an audio process: reads jobs from standard input and writes results to standard output.

    job      {"field": …, "is_file": …, "sample_rate": …, "num_bytes": …, "max_s": …, "rate": …}   a line of JSON
    answer   {"samples": n} | {"refused": [field, expected, got]} | {"failed": …}                  a line of JSON

    job      {"image": …}, the name of an image file                                               a line of JSON
    answer   {"size": [height, width]} | {"refused": …} | {"failed": …}                            a line of JSON

    job      {"tag": …}                                                                            a line of JSON
    answer   {"tag": …} | {"failed": …}                                                            a line of JSON

A job's file or samples are in a shared-memory file that both processes have open, and the resulting samples or colours
replace it. Audio is decoded in a separate process, so that a decoder's CPU time, memory and crashes do not affect the
caller.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from stretto.errors import Cancelled, InvalidRequest
from stretto.machine.worker_process import WorkerProcess
from stretto.preprocessing.audio import Recording, read_file, read_samples, resample
from stretto.preprocessing.decoders import READABLE, read_tag
from stretto.preprocessing.file_size import check_file_size
from stretto.preprocessing.images import READABLE as READABLE_IMAGES
from stretto.preprocessing.images import read_image

# CPU time of a job in seconds, so that an endless loop in a decoder ends only this process. For a recording, the limit
# also includes this share of its maximum duration. The largest image takes 0.5 s, an hour of AAC 10 s.
MAX_CPU_S = 10
MAX_CPU_SHARE = 0.02
MAX_MEMORY_BYTES = 2 << 30  # address space; a 70 KB MP4 file can declare tables of several gigabytes


def main() -> None:
    """Process jobs until standard input is closed."""
    memory = int(sys.argv[1])
    niceness = int(sys.argv[2])
    # Absolute, because the parent's priority may be raised temporarily while models load (launcher/processes.py).
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    limit_memory()
    for line in sys.stdin:
        job = json.loads(line)
        limit_cpu(max_cpu_s(job))
        print(json.dumps(answer(memory, job)), flush=True)


def limit_memory() -> None:
    """Limit the address space, so that a file that needs too much memory fails only its own job."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def max_cpu_s(job: dict[str, Any]) -> int:
    """Return the limit of the CPU time of a job, in seconds."""
    return MAX_CPU_S + int(MAX_CPU_SHARE * job.get("max_s", 0))


def limit_cpu(time_s: int) -> None:
    """Limit the CPU time of the next job; if the job exceeds the limit, the kernel kills this process (SIGXCPU)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + time_s
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def answer(memory: int, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job and return its answer; samples or pixels replace the input in the file `memory`."""
    try:
        if "tag" in job:
            return {"tag": read_tag(contents(memory), job["tag"])}
        if "image" in job:
            pixels = read_image(contents(memory), job["image"])
            replace_contents(memory, pixels)
            return {"size": pixels.shape[:2]}
        pcm = read(memory, job)
        replace_contents(memory, np.asarray(pcm, np.float32))
    except InvalidRequest as error:
        return {"refused": [error.field, error.expected, str(error.got)]}
    except MemoryError:
        return {
            "refused": [
                name_of(job),
                f"a file that can be read within {MAX_MEMORY_BYTES >> 30} GiB of memory",
                "more",
            ]
        }
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"samples": len(pcm)}


def name_of(job: dict[str, Any]) -> str:
    """Return the name of a job's file in error messages."""
    name: str = job.get("field", job.get("image", "file"))
    return name


def replace_contents(memory: int, array: np.ndarray) -> None:
    os.ftruncate(memory, 0)
    write(memory, np.ascontiguousarray(array).data.cast("B"))


def write(memory: int, data: memoryview) -> None:
    """Write `data` at the start of the file `memory`; raise OSError if there is not enough space."""
    num_written = 0
    while num_written < len(data):  # the kernel may write fewer bytes than requested
        num_written += os.pwrite(memory, data[num_written:], num_written)


def contents(memory: int) -> bytes:
    return os.pread(memory, os.fstat(memory).st_size, 0)


def read(memory: int, job: dict[str, Any]) -> np.ndarray:
    """Decode a job's recording, and return its samples, float32 [n]."""
    max_s = job["max_s"]
    rate = job["rate"]
    if job["is_file"]:
        pcm, sample_rate = read_file(contents(memory), max_s, job["field"])
        return resample(pcm, sample_rate, rate)
    pcm = np.empty(job["num_bytes"] // 4, np.float32)
    os.preadv(memory, [pcm.data], 0)
    return read_samples(pcm, job["sample_rate"], max_s, rate)


MAX_WAIT_S = 300.0  # for a process that is stopped; a running one reaches its CPU limit earlier


class AudioProcessEnded(Exception):
    """The process ended or was killed while reading a recording."""


class AudioProcess:
    """Process that decodes recordings one at a time, and is restarted after a crash.

    Its method `read` is an AudioReader.
    """

    def __init__(self, niceness: int = 0) -> None:
        """Start the process at nice level `niceness`, from 0 to 19."""
        self._process = WorkerProcess("stretto.preprocessing.audio_worker", niceness=niceness)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def num_bytes(self) -> int:
        return self._process.num_bytes

    def read(
        self,
        recording: Recording,
        max_s: float,
        target_rate: int,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> np.ndarray:
        """Read a recording like `audio.read_recording`, with the same arguments and exceptions.

        Once `is_cancelled` returns True, the process ends, and is replaced.

        Raises:
            InvalidRequest: Also if the CPU time of the job exceeds its limit.
            Cancelled: The job was cancelled.
            AudioProcessEnded: The process crashed, failed, or did not answer for MAX_WAIT_S.
        """
        data = np.frombuffer(recording.data, np.uint8).data
        if recording.is_image:
            return self._read_image(recording.field, data, is_cancelled)
        if recording.is_file:
            check_file_size(len(data), recording.field, READABLE)
        job = {"field": recording.field, "is_file": recording.is_file, "sample_rate": recording.sample_rate}
        job |= {"num_bytes": len(data), "max_s": max_s, "rate": target_rate}
        with self._given(data):
            pcm = np.empty(self._ask(job, is_cancelled)["samples"], np.float32)
            if os.preadv(self._process.memory, [pcm.data], 0) != pcm.nbytes:
                raise AudioProcessEnded("fewer samples than announced")
            return pcm

    def _read_image(self, field: str, data: memoryview, is_cancelled: Callable[[], bool]) -> np.ndarray:
        check_file_size(len(data), field, READABLE_IMAGES)
        with self._given(data):
            height, width = self._ask({"image": field}, is_cancelled)["size"]
            pixels = np.empty((height, width, 3), np.uint8)
            if os.preadv(self._process.memory, [pixels.data.cast("B")], 0) != pixels.nbytes:
                raise AudioProcessEnded("fewer colours than announced")
            return pixels

    def tag(self, data: bytes, name: str) -> str | None:
        """Return a tag of an audio file like `decoders.read_tag`, with the same arguments."""
        with self._given(np.frombuffer(data, np.uint8).data):
            tag: str | None = self._ask({"tag": name})["tag"]
            return tag

    def close(self) -> None:
        self._process.close()

    @contextmanager
    def _given(self, data: memoryview) -> Iterator[None]:
        """Write the audio of a job to the shared memory; release the memory at the end of the `with` block."""
        self._process.start_again_if_ended()
        try:
            os.ftruncate(self._process.memory, len(data))
            write(self._process.memory, data)
            yield
        finally:
            self._process.release_memory()

    def _ask(self, job: dict[str, Any], is_cancelled: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        answer = self._process.ask(job, MAX_WAIT_S, is_cancelled)
        if answer is None and is_cancelled():
            raise Cancelled("the client has disconnected")
        if answer is None and self._process.exit_code == -signal.SIGXCPU:
            expected = f"a file that is decoded within {max_cpu_s(job)} s of CPU time"
            raise InvalidRequest(name_of(job), expected, "more")
        if answer is None:
            raise AudioProcessEnded("the audio-reading process ended while reading this file")
        if "refused" in answer:
            raise InvalidRequest(*answer["refused"])
        if "failed" in answer:
            raise AudioProcessEnded(answer["failed"])
        return answer


if __name__ == "__main__":
    main()
