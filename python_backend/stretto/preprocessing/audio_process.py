"""Separate process that decodes audio, so that the caller is protected from its CPU time, memory and crashes."""

import os
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import Recording, check_file_size
from stretto.preprocessing.audio_worker import write
from stretto.worker_process import WorkerProcess

MAX_WAIT_S = 300.0  # for a process that is stopped; a running one reaches its CPU limit earlier


class AudioProcessEnded(Exception):
    """The process ended, or was killed, while it read a recording."""


class AudioProcess:
    """Process that decodes recordings one at a time, and is restarted after a crash. `read` is an AudioReader."""

    def __init__(self, niceness: int = 0) -> None:
        """Start the process at nice level `niceness`, from 0 to 19."""
        self._process = WorkerProcess("stretto.preprocessing.audio_worker", niceness=niceness)

    @property
    def pid(self) -> int:
        """Pid of the running child process; it changes when a crashed process is replaced."""
        return self._process.pid

    @property
    def num_bytes(self) -> int:
        """Size of the memory shared with the process, in bytes; 0 between recordings."""
        return self._process.num_bytes

    def read(self, recording: Recording, max_s: float, target_rate: int) -> np.ndarray:
        """Read a recording like `audio.read_recording`, with the same arguments, result and exceptions.

        Raises:
            AudioProcessEnded: The process crashed, failed, or did not answer for MAX_WAIT_S.
        """
        data = np.frombuffer(recording.data, np.uint8).data
        if recording.is_file:
            check_file_size(len(data), recording.field)
        self._process.start_again_if_ended()
        job = {"field": recording.field, "is_file": recording.is_file, "sample_rate": recording.sample_rate}
        job |= {"num_bytes": len(data), "max_s": max_s, "rate": target_rate}
        try:
            os.ftruncate(self._process.memory, len(data))
            write(self._process.memory, data)
            return self._result(self._process.ask(job, MAX_WAIT_S))
        finally:
            self._process.release_memory()

    def close(self) -> None:
        """Kill the process and release the shared memory."""
        self._process.close()

    def _result(self, answer: dict[str, Any] | None) -> np.ndarray:
        if answer is None:
            raise AudioProcessEnded("the audio-reading process ended while reading this file")
        if "refused" in answer:
            raise InvalidRequest(*answer["refused"])
        if "failed" in answer:
            raise AudioProcessEnded(answer["failed"])
        pcm = np.empty(answer["samples"], np.float32)
        if os.preadv(self._process.memory, [pcm.data], 0) != pcm.nbytes:
            raise AudioProcessEnded("fewer samples than announced")
        return pcm
