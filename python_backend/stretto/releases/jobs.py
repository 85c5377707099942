"""Jobs in a child process, so that the command itself imports neither torch nor the hub's client library.

A job and its answer are each one line of JSON, on the child's standard input and output. Messages of the child and its
libraries are kept in a file, and are shown only if it dies.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Self

from stretto.errors import CheckpointError
from stretto.machine.worker_process import die_with_parent
from stretto.releases.messages import DoesNotFit, ReleaseError

Report = Callable[[int], None]  # called with a number of processed bytes
JOB = "job"
RESULT = "result"
ERROR = "error"
STATUS = "status"
DONE = "done"
TAIL_CHARS = 500
# Signals that end a job for a known reason: two of limits that it sets for itself, one of a mapped file without data.
# In a tmpfs, reading a hole through a map takes space: `View.add_header` writes such files.
ENDINGS: Mapping[int, tuple[type[ReleaseError], str]] = {
    signal.SIGXCPU: (ReleaseError, "the answer needs more processor time than a release may take"),
    signal.SIGALRM: (ReleaseError, "the answer took too long"),
    signal.SIGBUS: (
        DoesNotFit,
        "the disk of the models or of the hub's cache is full, or a file on it was shortened or is damaged",
    ),
}


class JobProcess:
    """Child process that runs the jobs of a module, which is started by the first job.

    Args:
        module: Module whose main program calls `serve`.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._environment = dict(environment or {})
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker

    @cached_property
    def _process(self) -> "subprocess.Popen[bytes]":
        # Without bytecode, importing torch takes seconds longer.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        # -P: a module in the current folder must not shadow this package. A session of its own: an interrupt at the
        # terminal reaches only the command, which then ends the child.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self._module],
            env=inherited | self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    def call(self, job: str, report: Report = lambda num_bytes: None, **values: Any) -> Any:
        """Run a job and return its result; call `report` with each number of processed bytes.

        If the job failed or the child died, raise ReleaseError with the exit status.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # the child has died: see below
            self._process.stdin.write(json.dumps({JOB: job, **values}).encode() + b"\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:  # a library has printed during its import, or the child has died within a line
                continue
            if DONE in answer:
                report(answer[DONE])
            elif ERROR in answer:
                error = ReleaseError(answer[ERROR])
                error.status = answer[STATUS]
                raise error
            else:
                return answer[RESULT]
        status = self._process.wait()
        if -status in ENDINGS:
            error_type, reason = ENDINGS[-status]
            raise error_type(f"{job}: {reason}")
        raise ReleaseError(f"{job}: the process ended with status {status}: {self._tail()}")

    def close(self) -> None:
        """End the child, even in the middle of a job."""
        if "_process" in vars(self):
            self._process.kill()
            self._process.communicate()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _tail(self) -> str:
        self._log.seek(0)
        return " ".join(self._log.read().decode(errors="replace").split())[-TAIL_CHARS:]


def serve(jobs: Mapping[str, Callable[..., Any]]) -> None:
    """Run the jobs that arrive on standard input, until it ends.

    The first argument of each function is a `Report`, the others are the values of the request.
    """
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print

    lock = threading.Lock()  # a job may report from several threads

    def answer(**record: Any) -> None:
        with lock:
            print(json.dumps(record), file=answers, flush=True)

    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = jobs[request.pop(JOB)](lambda num_bytes: answer(done=num_bytes), **request)
        except ReleaseError as error:
            answer(error=_line(error), status=error.status)
        except (CheckpointError, OSError) as error:
            answer(error=_line(error), status=ReleaseError.status)
        else:
            answer(result=result)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
