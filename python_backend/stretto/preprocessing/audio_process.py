"""Separate process that decodes audio, so that the caller is protected from its CPU time, memory and crashes."""

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import Recording, check_file_size
from stretto.preprocessing.audio_worker import write

MAX_WAIT_S = 300.0  # for a process that is stopped; a running one reaches its CPU limit earlier


class AudioProcessEnded(Exception):
    """The process ended, or was killed, while it read a recording."""


class AudioProcess:
    """Process that decodes recordings one at a time, and is restarted after a crash. `read` is an AudioReader."""

    def __init__(self, niceness: int = 0) -> None:
        """Start the process at nice level `niceness`, from 0 to 19."""
        self._niceness = niceness
        self._memory = os.memfd_create("stretto_audio", os.MFD_CLOEXEC)
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Pid of the running child process; it changes when a crashed process is replaced."""
        return self._process.pid

    @property
    def num_bytes(self) -> int:
        """Size of the memory shared with the process, in bytes; 0 between recordings."""
        return os.fstat(self._memory).st_size

    def read(self, recording: Recording, max_s: float, target_rate: int) -> np.ndarray:
        """Read a recording like `audio.read_recording`, with the same arguments, result and exceptions.

        Raises:
            AudioProcessEnded: The process crashed, failed, or did not answer for MAX_WAIT_S.
        """
        data = np.frombuffer(recording.data, np.uint8).data
        if recording.is_file:
            check_file_size(len(data), recording.field)
        if self._process.poll() is not None:
            self._restart()
        job = {"field": recording.field, "is_file": recording.is_file, "sample_rate": recording.sample_rate}
        job |= {"num_bytes": len(data), "max_s": max_s, "rate": target_rate}
        try:
            os.ftruncate(self._memory, len(data))
            write(self._memory, data)
            return self._result(self._ask(job))
        finally:
            os.ftruncate(self._memory, 0)  # release memory between recordings

    def close(self) -> None:
        """Kill the process and release the shared memory."""
        self._end()
        os.close(self._memory)

    def _start(self) -> subprocess.Popen[str]:
        # -P: import nothing from the server's working directory.
        command = [sys.executable, "-P", "-m", "stretto.preprocessing.audio_worker"]
        return subprocess.Popen(
            [*command, str(self._memory), str(self._niceness)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._memory],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def _restart(self) -> None:
        self._end()
        self._process = self._start()

    def _end(self) -> None:
        with suppress(BrokenPipeError), self._process:  # closes its pipes and waits
            self._process.kill()

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
            if select.select([self._process.stdout], [], [], MAX_WAIT_S)[0]:
                line = self._process.stdout.readline()
        except BrokenPipeError:
            pass  # handled like a missing answer
        if not line.endswith("\n"):
            self._restart()
            raise AudioProcessEnded("the audio-reading process ended while reading this file")
        return json.loads(line)

    def _result(self, answer: dict[str, Any]) -> np.ndarray:
        if "refused" in answer:
            raise InvalidRequest(*answer["refused"])
        if "failed" in answer:
            raise AudioProcessEnded(answer["failed"])
        pcm = np.empty(answer["samples"], np.float32)
        if os.preadv(self._memory, [pcm.data], 0) != pcm.nbytes:
            raise AudioProcessEnded("fewer samples than announced")
        return pcm
