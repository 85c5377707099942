"""Log of a launcher instance: the output of its processes, in rotated files of bounded size."""

import fcntl
import os
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# at most 80 MiB in total: the log and LOG.1 to LOG.4
LOG_BYTES = 16 << 20
OLD_LOGS = 4
PIPE_BYTES = 1 << 20  # output that processes can write while the launcher is stopped
TAIL_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 16
WRITABLE_S = 1.0
STANDARD_OUTPUT = 1


def log_line(message: str) -> None:
    """Write a line of the launcher's own output to standard error; drop it if that fails."""
    with suppress(OSError):
        print(f"[serve] {message}", file=sys.stderr, flush=True)


class LogFile:
    """Log file. Lines that cannot be written are dropped and counted.

    Writing never raises an error, and waits for at most WRITABLE_S. Once writing is possible again, the number of
    dropped lines is written first. A regular file is rotated at LOG_BYTES.

    Attributes:
        lock: Lock that every writer must hold.
    """

    def __init__(self, path: Path | None) -> None:
        """Select the file, which is opened at the first write; None selects standard output."""
        self.lock = threading.Lock()
        self._path = path
        self._file: int | None = None if path is not None else STANDARD_OUTPUT
        self._num_dropped = 0
        self._ends_in_line = True
        self._link_flag = 0

    def write(self, lines: bytes) -> None:
        """Append complete lines, or drop them if that fails; the caller must hold the lock."""
        notice = b"" if self._ends_in_line else b"\n"
        if self._num_dropped:
            notice += b"[serve] %d lines of this log were dropped before this one\n" % self._num_dropped
        try:
            file = self._opened(len(notice) + len(lines))
            if notice:
                self._put(file, notice)
                self._num_dropped = 0
            self._put(file, lines)
        except OSError as error:
            if not self._num_dropped:
                log_line(f"the log cannot be written, and lines are dropped until it can: {error.strerror or error}")
            self._num_dropped += max(1, lines.count(b"\n"))

    def close(self) -> None:
        """Close the file; standard output stays open."""
        if self._file is not None and self._path is not None:
            os.close(self._file)
            self._file = None

    def _opened(self, num_bytes: int) -> int:
        """Return the file's descriptor; rotate the file first if `num_bytes` more would exceed LOG_BYTES."""
        if self._path is None:
            return STANDARD_OUTPUT
        if self._file is None:
            # O_NONBLOCK: opening a FIFO without a reader fails instead of blocking
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | self._link_flag
            self._file = os.open(self._path, flags, 0o666)
            self._link_flag = os.O_NOFOLLOW  # the user chose the first file; a later link may be another user's
        status = os.fstat(self._file)
        if not status.st_nlink:  # the file was removed
            self.close()
            return self._opened(num_bytes)
        if stat.S_ISREG(status.st_mode) and status.st_size > 0 and status.st_size + num_bytes > LOG_BYTES:
            try:
                rotate(self._path)
            except OSError:  # the folder is not writable: truncate the file to keep the newest lines
                os.ftruncate(self._file, 0)
                return self._file
            self.close()
            return self._opened(num_bytes)
        return self._file

    def _put(self, file: int, data: bytes) -> None:
        while data:
            wait_s = 0.0 if self._num_dropped else WRITABLE_S
            if not select.select([], [file], [], wait_s)[1]:
                raise TimeoutError("the pipe has no reader")
            # A writable pipe accepts PIPE_BUF bytes without blocking.
            written = os.write(file, data[: select.PIPE_BUF])
            self._ends_in_line = data[written - 1 : written] == b"\n"
            data = data[written:]


def rotate(path: Path) -> None:
    """Rename `path` to `path`.1, `path`.1 to `path`.2, and so on, replacing the oldest file."""
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, OLD_LOGS + 1))]
    for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
        if newer.exists():
            newer.replace(older)


class ChildOutput:
    """Pipe for the output of a process and its children, which is copied to the log line by line."""

    def __init__(self, log: LogFile) -> None:
        self._log = log
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reading, False)
        with suppress(OSError):  # the user's limit on pipe pages has been reached
            fcntl.fcntl(self.reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._line = self._tail = b""
        self._is_open = True

    def copy(self) -> None:
        """Copy the output in the pipe to the log."""
        with self._log.lock:
            for _ in range(PIPE_BYTES // TAIL_BYTES):
                if not self._is_open:
                    return
                try:
                    data = os.read(self.reading, TAIL_BYTES)
                except BlockingIOError:
                    break
                self._take(data)

    def tail(self) -> str:
        """Return the last TAIL_BYTES of the output as text."""
        self.copy()
        return self._tail.decode(errors="replace")

    def forget(self) -> None:
        """Discard previous output, so that `tail` returns only later output."""
        self.copy()
        self._tail = b""

    def close(self) -> None:
        """Copy the remaining output and close the pipe, even if a process still holds its write end."""
        self.copy()
        with self._log.lock:
            if self._is_open:
                self._take(b"")

    def _take(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        self._line += data
        end = self._line.rfind(b"\n") + 1
        if not data and self._line and end < len(self._line):
            end = len(self._line) + 1
            self._line = self._line + b"\n"
        if len(self._line) - end > MAX_LINE_BYTES:
            end = len(self._line)
        if end:
            self._log.write(self._line[:end])
            self._line = self._line[end:]
        if not data:
            self._is_open = False
            os.close(self.reading)


class LaunchLog:
    """Log of a launcher instance, and the thread that copies the output of its processes into it.

    Processes never write to the log's file system themselves, so a full disk loses log lines and has no other effect.
    """

    def __init__(self, path: Path | None, folder: Path | None = None) -> None:
        """Start the copying thread.

        Args:
            path: Path of the log; None for standard output.
            folder: Folder in which processes are started, so that they import no modules from the user's current one;
                None for the current one.
        """
        self._log = LogFile(path)
        self._folder = folder
        self._outputs: dict[int, ChildOutput] = {}  # by descriptor; closed descriptors are reused
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def start(
        self, command: Sequence[str], starter: Callable[..., Any] = subprocess.Popen, **options: Any
    ) -> tuple[Any, ChildOutput]:
        """Start a process in its own session, with its standard output and standard error in the log."""
        output = ChildOutput(self._log)
        self._outputs[output.reading] = output
        self._poll.register(output.reading, select.EPOLLIN)
        defaults: dict[str, Any] = {"cwd": self._folder, "start_new_session": True}
        defaults |= {"stdout": output.writing, "stderr": output.writing}
        try:
            return starter(command, **defaults | options), output
        except BaseException:
            output.close()
            raise
        finally:
            os.close(output.writing)

    def close(self) -> None:
        """Copy the remaining output, and end the thread."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for output in list(self._outputs.values()):
            output.close()
        self._poll.close()
        os.close(self._wake)
        self._log.close()

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake:
                    return
                output = self._outputs.get(descriptor)
                if output is not None:
                    output.copy()
