"""Run the tests of one collection in several forked processes (`--workers N`).

Each process of pytest-xdist imports all test files itself, which takes 15 to 30 s of processor time. Here, one process
collects, and each worker is a copy of it that costs nothing. Tests of a group run in one worker, in their order; groups
begin in the order of their first tests, in whichever worker is free.
"""

import atexit
import os
import signal
import sys
import tempfile
import traceback
import warnings
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import pytest
from _pytest.capture import FDCapture

Items = deque[pytest.Item]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--workers`."""
    text = "number of processes that run the tests; 0: this one"
    parser.addoption("--workers", type=int, default=0, metavar="N", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark of a group."""
    config.addinivalue_line("markers", "together(name): runs tests that share a resource in one worker")


class Sender:
    """Plug-in of a worker that sends what happens, a message for each test, to the process that collects."""

    def __init__(self, config: pytest.Config, pipe: Connection) -> None:
        self._config = config
        self._pipe = pipe
        self._events: list[tuple[str, dict[str, Any]]] = []

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the events that were not sent, and forget them."""
        events = self._events
        self._events = []
        return events

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._events.append(("pytest_runtest_logstart", {"nodeid": nodeid, "location": location}))
        self._pipe.send(self.take())  # with the end and the warnings of the test before

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data: Any = report
        if not report.passed:
            data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._events.append(("pytest_runtest_logreport", {"report": data}))

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._events.append(("pytest_runtest_logfinish", {"nodeid": nodeid, "location": location}))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: tuple[str, int, str] | None
    ) -> None:
        category = warning_message.category
        if "<locals>" in category.__qualname__:  # pickle would not find it
            category = Warning
        text = str(warning_message.message)
        message = warnings.WarningMessage(text, category, warning_message.filename, warning_message.lineno)
        about = {"warning_message": message, "when": when, "nodeid": nodeid, "location": location}
        self._events.append(("pytest_warning_recorded", about))


def own_file(stream: FDCapture) -> None:
    """Give this process its own file for captured output, under the same number, which loggers already have."""
    number = stream.tmpfile.fileno()
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), number, inheritable=False)
    os.dup2(number, stream.targetfd)


def work(session: pytest.Session, pipe: Connection, index: int) -> None:
    """Run the tests of each group that the pipe names by the positions of its tests, until it names none."""
    config = session.config
    os.register_at_fork(after_in_child=pipe.close)  # otherwise a process that a test leaves behind keeps it open
    for finalizer in list(weakref.finalize._registry):
        finalizer.atexit = False  # of the process that collects, such as of a module's TemporaryDirectory
    capture = config.pluginmanager.getplugin("capturemanager")._global_capturing
    for stream in (capture.out, capture.err):
        if isinstance(stream, FDCapture):
            own_file(stream)
    config.pluginmanager.unregister(name="terminalreporter")
    sender = Sender(config, pipe)
    config.pluginmanager.register(sender)
    sender.take()  # warnings of the collection, which every new plug-in is told
    factory = config._tmp_path_factory
    factory._basetemp = factory.getbasetemp() / f"worker{index}"
    factory._basetemp.mkdir()
    try:
        while positions := pipe.recv():
            run(session, positions)
            pipe.send([*sender.take(), ("is_free", {})])
        session._setupstate.teardown_exact(None)
        atexit._run_exitfuncs()
        pipe.send([("has_ended", {})])
    except Exception:
        pipe.send([("is_broken", {"text": traceback.format_exc()})])


def run(session: pytest.Session, positions: list[int]) -> None:
    """Run the tests of a group."""
    items = [session.items[position] for position in positions]
    for item, following in zip(items, [*items[1:], session], strict=True):  # at the end, fixtures of files end
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


@dataclass
class Worker:
    """A forked process, seen from the one that collects."""

    pid: int
    pipe: Connection
    items: Items = field(default_factory=deque)  # that it still has to finish
    has_ended: bool = False  # with all fixtures

    def give(self, items: Items, positions: dict[pytest.Item, int]) -> None:
        """Make it run these tests, or end if there are none."""
        self.items = items
        with suppress(OSError):  # it has ended, which `wait` tells
            self.pipe.send([positions[item] for item in items])

    def end(self) -> None:
        """Kill it if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pipe.close()


class Pool:
    """All workers, and the groups of tests that none of them has begun."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._hook = session.config.hook
        self._positions = {item: position for position, item in enumerate(session.items)}
        self._workers: dict[Connection, Worker] = {}
        self._num_started = 0
        self._groups: deque[Items] = deque()
        groups: dict[str, Items] = {}
        for item in session.items:
            mark = item.get_closest_marker("together")
            groups.setdefault(mark.args[0] if mark else item.nodeid, deque()).append(item)
        self._groups.extend(groups.values())

    def run(self, num_workers: int) -> None:
        """Run all tests, or as many as `--maxfail` allows."""
        try:
            for _ in range(min(num_workers, len(self._groups))):
                self._start(self._groups.popleft())
            while self._workers:
                for pipe in wait([*self._workers]):
                    self._handle(self._workers[pipe])
                if self._session.shouldfail:
                    raise self._session.Failed(self._session.shouldfail)
                if self._session.shouldstop:
                    raise self._session.Interrupted(self._session.shouldstop)
            if self._groups:
                raise RuntimeError(f"{len(self._groups)} groups of tests did not run")
        finally:
            for worker in self._workers.values():
                worker.end()

    def _start(self, items: Items) -> None:
        self._session.config._tmp_path_factory.getbasetemp()  # one for all
        sys.stdout.flush()
        sys.stderr.flush()
        ours, theirs = Pipe()
        index = self._num_started
        self._num_started += 1
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(self._session, theirs, index)
                status = 0
            finally:
                os._exit(status)  # whatever was raised, because only the first process collects and reports
        theirs.close()
        self._workers[ours] = Worker(pid, ours)
        self._workers[ours].give(items, self._positions)

    def _handle(self, worker: Worker) -> None:
        """Report what a worker sent, and give it other tests if it has none."""
        try:
            events = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        for name, data in events:
            if name == "is_free":
                worker.give(self._groups.popleft() if self._groups else deque(), self._positions)
            elif name == "has_ended":
                worker.has_ended = True
            elif name == "is_broken":
                raise RuntimeError(f"a worker failed outside of a test\n{data['text']}")
            else:
                self._tell(name, data)
                if name == "pytest_runtest_logfinish":
                    worker.items.popleft()

    def _tell(self, name: str, data: dict[str, Any]) -> None:
        """Tell the plug-ins of this process what happened in a worker."""
        hook = getattr(self._hook, name)
        if name == "pytest_warning_recorded":
            hook.call_historic(kwargs=data)
            return
        if isinstance(data.get("report"), dict):
            data["report"] = self._hook.pytest_report_from_serializable(
                config=self._session.config, data=data["report"]
            )
        hook(**data)

    def _bury(self, worker: Worker) -> None:
        """Report the test during which a worker ended, and start another worker for those that were to follow."""
        del self._workers[worker.pipe]
        worker.end()
        if worker.has_ended:
            return
        if not worker.items:
            raise RuntimeError("a worker ended while its fixtures of the session did")
        item = worker.items.popleft()
        text = f"the worker ended during {item.nodeid}"
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")
        self._hook.pytest_runtest_logreport(report=report)
        if worker.items:
            self._start(worker.items)
        elif self._groups:
            self._start(self._groups.popleft())


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the tests in workers if the command line asks for them."""
    num_workers = session.config.getoption("workers")
    if not num_workers or session.config.option.collectonly or session.testsfailed:
        return None
    Pool(session).run(num_workers)
    return True
