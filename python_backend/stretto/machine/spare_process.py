"""Spare process that has imported modules in advance, and forks processes that run a program as `python -m` does.

    python -P -m stretto.machine.spare_process NAME DESCRIPTOR MODULE…

A process is forked in milliseconds, whereas the imports take seconds. Forked processes share the memory of the imports.
The spare itself runs no program, so a forked process inherits nothing of another one.

A client connects to the spare's Unix socket, DESCRIPTOR, and sends a program with the descriptors that it inherits. The
forked process answers with its pid, and with its exit code when it exits. The connection ends with the process.
"""

import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from stretto.machine.worker_process import LIBC, PR_SET_NAME, die_with_parent

MAX_DESCRIPTORS = 32
BACKLOG = 16
STREAMS = {1: "stdout", 2: "stderr"}
CLOSED = -signal.SIGKILL  # exit code of a process that ended without reporting one


def listen(path: Path) -> socket.socket:
    """Return a socket for a spare process. Clients may connect before the process has imported its modules."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener


def locate_title() -> None:
    """Let `setproctitle` find this process's title in memory, which must happen before the environment changes."""
    with suppress(ImportError):  # without this package, processes keep their titles
        import setproctitle

        setproctitle.getproctitle()


def preload(name: str, modules: Iterable[str]) -> None:
    """Import modules, and set the name by which the launcher finds this process, of at most 15 characters."""
    LIBC.prctl(PR_SET_NAME, name.encode())
    gc.disable()  # the imports free no objects, and are 10 % faster without collections
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # so that collections in forked processes do not copy shared pages
    gc.enable()


def serve(listener: socket.socket) -> NoReturn:
    """Fork a process for each client."""
    spare = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # this process does not wait for the others
    while True:
        connection, _ = listener.accept()
        is_forked = False
        with suppress(OSError):  # if there is no process, the client starts one itself
            is_forked = os.fork() == 0
        if is_forked:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _run(connection, spare)
        connection.close()


def _run(connection: socket.socket, spare: int) -> NoReturn:
    code = 1
    try:
        program, connection = _receive(connection)
        if program["dies_with_spare"]:
            die_with_parent()
            if os.getppid() != spare:
                os._exit(code)
        os.setsid()
        _set_title([program["module"], *program["arguments"]])
        connection.sendall(b"%d\n" % os.getpid())  # fails if the client has disconnected
        code = _exit_code(program["module"], program["arguments"])
        connection.sendall(b"%d\n" % code)
    except OSError:
        pass  # the client has ended
    finally:
        os._exit(code)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], socket.socket]:
    """Set up a program's descriptors and environment; return it, and the connection on its new descriptor."""
    _, received, _, _ = socket.recv_fds(connection, 1, MAX_DESCRIPTORS)
    with os.fdopen(received.pop(0), "rb") as file:
        program = json.loads(file.read())
    targets = program["descriptors"]
    above = max([2, *targets]) + 1  # so that no descriptor is overwritten before it is moved
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above) for number in received]
    connected = socket.socket(fileno=fcntl.fcntl(connection, fcntl.F_DUPFD_CLOEXEC, above))
    for number in [*received, connection.detach()]:
        os.close(number)
    for number, target in zip(moved, targets, strict=True):
        os.dup2(number, target)
        os.close(number)
    for number, name in STREAMS.items():  # the spare's objects describe the files that it has open
        stream = getattr(sys, name)
        opened = os.fdopen(number, "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False)
        setattr(sys, name, opened)
    if program["environment"] is not None:
        os.environ.clear()
        os.environ.update(program["environment"])
    return program, connected


def _set_title(words: Sequence[str]) -> None:
    with suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(" ".join([sys.executable, "-P", "-m", *words]))
    LIBC.prctl(PR_SET_NAME, words[0].encode())


def _exit_code(module: str, arguments: Sequence[str]) -> int:
    # `runpy` warns because the module has already been imported, which is intended.
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
    sys.argv = ["", *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
    return 0


class ForkedProcess:
    """Process forked by a spare process, with the methods of `subprocess.Popen` that the launcher uses.

    Attributes:
        returncode: Exit code; negative after a signal, and None while the process runs.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self._process = -1  # pidfd
        self._has_closed = False
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """Pid of the process; 0 until it has been forked, which waits for the imports of the spare."""
        self.poll()
        lines = self._received.split(b"\n")
        return int(lines[0]) if len(lines) > 1 else 0

    def has_started(self, timeout_s: float) -> bool:
        """Wait until the process has been forked; return False if this takes longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not self.pid and not self._has_closed:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            select.select([self._connection], [], [], left_s)
        return self.pid > 0

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        while not self._has_closed and select.select([self._connection], [], [], 0)[0]:
            try:
                data = self._connection.recv(64)
            except OSError:
                data = b""
            self._received += data
            self._has_closed = not data
            if self._process < 0 and b"\n" in self._received:
                with suppress(ProcessLookupError):
                    self._process = os.pidfd_open(int(self._received.split(b"\n")[0]))
        if self._has_closed and self.returncode is None:
            lines = self._received.split(b"\n")
            self.returncode = int(lines[1]) if len(lines) > 2 else CLOSED
            self.close()
        return self.returncode

    def wait(self, timeout_s: float | None = None) -> int:
        """Return the exit code once the process has ended; raise TimeoutError if it runs longer than `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise TimeoutError
            select.select([self._connection], [], [], left_s)
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, or prevent the fork if the process has not been forked yet."""
        self._send(signal.SIGKILL)

    def close(self) -> None:
        """Stop observing the process."""
        self._connection.close()
        self._has_closed = True
        if self._process >= 0:
            os.close(self._process)
            self._process = -1

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is not None:
            return
        if self._process >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, number)
            return
        self.returncode = -number
        self.close()


def fork(
    path: Path,
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    descriptors: Mapping[int, int] | None = None,
    dies_with_spare: bool = False,
) -> ForkedProcess | None:
    """Request a process from the spare process at this Unix socket; return None if there is no spare.

    Args:
        environment: None for that of the spare.
        descriptors: Descriptors of this process, by their number in the new one. Others are inherited from the spare.
        dies_with_spare: True to kill the process when the spare ends.
    """
    inherited = descriptors or {}
    program = {
        "module": module,
        "arguments": list(arguments),
        "environment": None if environment is None else dict(environment),
        "descriptors": list(inherited),
        "dies_with_spare": dies_with_spare,
    }
    connection = socket.socket(socket.AF_UNIX)
    with os.fdopen(os.memfd_create("program", os.MFD_CLOEXEC), "w+b") as file:
        file.write(json.dumps(program).encode())
        file.flush()
        file.seek(0)
        try:
            connection.connect(str(path))
            socket.send_fds(connection, [b"\0"], [file.fileno(), *inherited.values()])
        except OSError:
            connection.close()
            return None
    return ForkedProcess(connection)


def main(name: str, descriptor: str, *modules: str) -> NoReturn:
    """Run a spare process; the module docstring describes the arguments."""
    locate_title()
    preload(name, modules)
    serve(socket.socket(fileno=int(descriptor)))


if __name__ == "__main__":
    main(*sys.argv[1:])
