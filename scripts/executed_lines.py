"""Lines of product files that the tests execute, for `scripts.mutants`.

The process of the tests and all processes that it starts append the lines to one file.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

VARIABLE = "STRETTO_EXECUTED_LINES"  # environment variable: path of the JSON file with the arguments of the class


class ExecutedLines:
    """Function for `sys.settrace`, which appends a line to a file the first time that a test executes it.

    Args:
        wanted: Numbers of the lines to record, by the path of their file. In functions without such a line, only calls
            are recorded, because tracing each line of a codec takes many times as long as its tests.
    """

    def __init__(self, log: str, wanted: dict[str, list[int]]) -> None:
        self._log = log
        Path(log).touch()
        self._wanted = {path: frozenset(lines) for path, lines in wanted.items()}
        self._is_wanted = dict[tuple[str, int, str], bool]()
        self._written = set[tuple[str, int]]()
        self._end = 0

    def start(self) -> None:
        """Record all threads of this process from now on, and all processes that it forks."""
        os.register_at_fork(after_in_child=self._written.clear)  # it may run another test
        threading.settrace(self.trace)
        sys.settrace(self.trace)

    def trace(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        path = frame.f_code.co_filename
        if path not in self._wanted:
            return None
        if frame.f_lineno is not None:  # code that the compiler adds, such as the end of a `with`, has none
            self._write(path, frame.f_lineno)
        return self.trace if event != "call" or self._has_wanted(path, frame.f_code) else None

    def _write(self, path: str, line: int) -> None:
        if (path, line) in self._written:
            return
        self._written.add((path, line))
        with suppress(OSError):  # no file is left
            log = os.open(
                self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT
            )  # not kept, because daemons close all files
            os.write(log, f"{path}:{line}\n".encode())
            os.close(log)

    def _has_wanted(self, path: str, code: CodeType) -> bool:
        key = (path, code.co_firstlineno, code.co_name)
        if key not in self._is_wanted:
            self._is_wanted[key] = any(line in self._wanted[path] for _, _, line in code.co_lines())
        return self._is_wanted[key]

    def take(self) -> set[tuple[str, int]]:
        """Return the path and number of each line that any process has recorded since the last call."""
        self._written.clear()
        text = Path(self._log).read_bytes()[self._end :]
        text = text[: text.rfind(b"\n") + 1]  # whole lines
        self._end += len(text)
        entries = [line.rpartition(":") for line in text.decode().splitlines()]
        return {(path, int(number)) for path, _, number in entries if path in self._wanted}  # others: a file was full


def start_in_child() -> None:
    """Record this process if the process that started it is recorded."""
    if settings := os.environ.get(VARIABLE):
        ExecutedLines(**json.loads(Path(settings).read_text())).start()
