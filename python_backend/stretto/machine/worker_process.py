"""Child process that runs jobs one at a time. The CPU time, memory and crashes of a job do not affect the parent."""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Process names of at most 15 characters, by which the launcher finds spare processes (`spare_process.py`) and the hosts
# of engines (`engine/host.py`).
SPARE_NAME = "engine_spare"
GATEWAY_SPARE_NAME = "gateway_spare"
HOST_NAME = "host_of_"  # the stub's pid is appended
ENGINE_SPARE = "STRETTO_ENGINE_SPARE"  # environment variable: Unix socket of the spare process for engines

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
POLL_S = 0.5  # between checks whether a job is cancelled; during a shorter job, the process is not replaced
START_S = 300.0  # for imports and loading models, on a machine that is busy starting the server


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_after_parent(parent: int) -> None:
    """Make the kernel send SIGTERM to this process when its parent dies, or at once if it has died."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def outlive_parent() -> None:
    """Make this process outlive its parent."""
    LIBC.prctl(PR_SET_PDEATHSIG, 0)


class WorkerProcess:
    """Child process that runs a module, and is restarted after a crash.

    A job and its answer are each one line of JSON; arrays are passed in shared memory. The module's last two arguments
    are the descriptor of that memory and a nice level, 0 to 19.

    Attributes:
        exit_code: Exit code of the last process that has ended, negative for a signal; None if none has.
    """

    def __init__(self, module: str, *arguments: str, niceness: int) -> None:
        self.memory = os.memfd_create(module, os.MFD_CLOEXEC)
        # -P: import nothing from the server's working directory.
        self._command = [sys.executable, "-P", "-m", module, *arguments, str(self.memory), str(niceness)]
        self.exit_code: int | None = None
        self._is_killed = self._has_answered = False
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Pid of the running child process; it changes when a crashed process is replaced."""
        return self._process.pid

    @property
    def num_bytes(self) -> int:
        """Size of the shared memory; 0 between jobs."""
        return os.fstat(self.memory).st_size

    def start_again_if_ended(self) -> None:
        if self._process.poll() is not None:
            self.restart()

    def ask(
        self, job: dict[str, Any], max_wait_s: float, is_cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Any] | None:
        """Run a job; return its answer, or None if the process ended, was too slow, or was replaced.

        Args:
            max_wait_s: Time after which a process that has not answered is replaced; for its first answer, START_S
                longer.
            is_cancelled: Returns True once the answer is not needed, so that the process is replaced.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):  # handled like a missing answer
            print(json.dumps(job), file=self._process.stdin, flush=True)
            longest_s = max_wait_s if self._has_answered else max_wait_s + START_S
            if self._wait_for_answer(time.monotonic() + longest_s, is_cancelled):
                line = self._process.stdout.readline()
        if line.endswith("\n"):
            self._has_answered = True
            answer: dict[str, Any] = json.loads(line)
            return answer
        if not self._is_killed:
            self.restart()
        return None

    def _wait_for_answer(self, until_s: float, is_cancelled: Callable[[], bool]) -> bool:
        """Return True once there is an answer or the process has ended; False if it is too late or cancelled."""
        assert self._process.stdout is not None
        while (left_s := until_s - time.monotonic()) > 0:
            if select.select([self._process.stdout], [], [], min(left_s, POLL_S))[0]:
                return True
            if is_cancelled():
                return False
        return False

    def restart(self) -> None:
        """Kill the process and start another one; raise OSError if none can be started."""
        self._end()
        self._process = self._start()

    def release_memory(self) -> None:
        """Truncate the shared memory to 0 bytes; must be called between jobs."""
        os.ftruncate(self.memory, 0)

    def kill(self) -> None:
        """Kill the process and do not replace it; a pending `ask` in another thread then returns None."""
        self._is_killed = True
        self._process.kill()

    def close(self) -> None:
        """Kill the process and free the shared memory."""
        self._end()
        os.close(self.memory)

    def _start(self) -> subprocess.Popen[str]:
        self._has_answered = False
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self.memory],
            env=os.environ | ONE_THREAD,
            encoding="utf-8",
        )

    def _end(self) -> None:
        with suppress(BrokenPipeError), self._process:  # closes its pipes and waits
            self._process.kill()
        self.exit_code = self._process.returncode
