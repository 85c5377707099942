"""Hooks and fixtures for the whole suite: the tests in tests/ and those of the plug-ins."""

import atexit
import gc
import importlib
import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import distribution
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import benchmarks  # noqa: F401 (registers the families of the tests)
from setup import entry_points
from stretto.engine.environment import prepare_environment
from stretto.triton_io import stub
from tests import heap

pytest_plugins = ["tests.ending", "tests.workers"]

heap.keep_to_ourselves()
prepare_environment()  # before any test imports what imports Triton, which looks at the environment once

# A thread that fails ends its stub: here, the tests' own process, without a word.
ENDED: list[str] = []
stub.end = ENDED.append

# Background jobs of a shell ignore interrupts, and processes of tests would inherit that. Handle them as at a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A contributor's http_proxy is not for servers of tests. Product code does not depend on this (`proxy_variables`).
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"

# On every run the same examples, for as long as they take: a failure is the change's, and not the machine's.
SLOW = [HealthCheck.too_slow]
settings.register_profile("same", derandomize=True, deadline=None, database=None, suppress_health_check=SLOW)
settings.load_profile("same")


def pytest_configure() -> None:
    """Stop if the entry points in a pyproject.toml differ from the installed ones, because modules may have moved."""
    wanted = {(group, name, value) for group, entries in entry_points().items() for name, value in entries.items()}
    found = {(each.group, each.name, each.value) for each in distribution("stretto").entry_points}
    if not wanted <= found:
        pytest.exit("a pyproject.toml has other entry points than the installed package: run scripts/setup.sh dev", 2)


ALL_PASSED = pytest.StashKey[bool]()
ROOT = Path(__file__).parent
TESTS = ROOT / "tests"
# Files and folders of tests that take minutes together, start many processes, or import what no other short test needs:
# all of their tests have the mark `slow`. So does each other test that takes 0.3 s of processor time or more.
SLOW_PLACES = {
    *"aligning benchmarks codecs convert decoder encoders engine examples families lab launcher realtime".split(),
    *("releases", "scripts", "training", "test_cli.py", "test_examples.py", "test_depth.py", "test_hearing.py"),
    *("test_pipes.py", "test_wheel.py", "verification", "weights"),
    *("test_linear_time.py", "test_penalty.py", "test_readme.py", "test_helm.py", "test_kubernetes.py"),
    *("test_api_page.py", "test_hub.py", "test_standard_input.py"),
    # These import torch, which takes as long as a thousand short tests.
    *("decoding", "sampling", "test_ceiling.py", "test_delivery.py", "test_hang.py", "test_images.py"),
    *("test_json_passes.py", "test_live_sessions.py", "test_options.py", "test_other_clients.py", "test_pattern.py"),
    *("test_prompt.py", "test_request.py", "test_resumed_speech.py", "test_text_part.py"),
}
NOT_WANTED = re.compile(r"not \w+(?: and not \w+)*")
OF_A_FILE = re.compile(r"^pytestmark = (?:\[\n.*?^\]|[^\n]*)", re.MULTILINE | re.DOTALL)


@cache
def is_slow(path: Path) -> bool:
    """Return True if a test file is a plug-in's, one of the SLOW_PLACES, or inside one."""
    if path.is_relative_to(ROOT / "plugins"):
        return True
    return path.is_relative_to(TESTS) and not SLOW_PLACES.isdisjoint(path.relative_to(TESTS).parts)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the import of a file if all its tests have a deselected mark, and that of a whole folder's conftest.py."""
    if not collection_path.is_relative_to(ROOT) or not NOT_WANTED.fullmatch(config.option.markexpr):
        return None
    left_out = set(config.option.markexpr.split())
    if is_slow(collection_path) and "slow" in left_out:
        return True
    if collection_path == TESTS / "server":
        return True if "server" in left_out else None
    if collection_path.suffix != ".py":
        return None
    marks = OF_A_FILE.search(collection_path.read_text())
    return True if marks and set(re.findall(r"mark\.(\w+)", marks[0])) & left_out else None


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Disable garbage collection during imports, which saves an eighth of their time; exclude imports afterwards.

    Raises:
        pytest.UsageError: If tests for `scripts/test.sh --fast` import torch or vLLM, which takes seconds.
    """
    gc.disable()
    if "slow" not in session.config.option.markexpr.split():
        importlib.import_module("wordfreq")  # looks at all imported modules: 2 s if training/ imports it later
    collected = yield
    if {"engine", "slow"} <= set(session.config.option.markexpr.split()):
        for name in sorted({"torch", "vllm"} & sys.modules.keys()):
            raise pytest.UsageError(f"a collected file imports {name}: add the file to SLOW_PLACES")
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.name.startswith("torch"):
            logger.propagate = True  # otherwise pytest adds its handlers to each of these 80 loggers, for 3 ms a test
    heap.set_aside(collect=False)  # imports leave little garbage
    gc.set_threshold(20_000)  # not 700: tests make many objects that they keep, and little garbage
    gc.enable()
    return collected


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group tests for the workers, and run the longest first.

    Tests of a file share an engine and stay together, and so do all tests of the server and those of files that name
    the same group. The longest groups begin first, so that no worker is left with one at the end.
    """
    for item in items:
        if is_slow(item.path):
            item.add_marker(pytest.mark.slow)
    if not config.getoption("workers"):
        return
    for item in items:
        if item.get_closest_marker("server"):
            item.add_marker(pytest.mark.together("server"))
        elif not item.get_closest_marker("together"):
            item.add_marker(pytest.mark.together(str(item.path)))
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("server", "engine", "slow")])


@cache
def stand_back() -> None:
    """Lower this process's share of processor time to a tenth, if other processes need the processor.

    Linux divides the processor by session first, so this process gets its own session (autogroup, `man 7 sched`).
    """
    os.nice(10)
    with suppress(OSError):  # a session's leader, or a kernel that does not weigh sessions
        os.setsid()
        Path("/proc/self/autogroup").write_text("10")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give the worker that tests the server priority over the others.

    Triton reports a stub as dead if it does not respond for a second, which happens on an overloaded machine.
    """
    if item.config.getoption("workers") and not item.get_closest_marker("server"):
        stand_back()


@pytest.fixture(autouse=True)
def forget_written_modules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove modules that a test wrote and imported, so that a later test may write others with the same names."""
    before = set(sys.modules) if "tmp_path" in request.fixturenames else set()
    yield
    values = request.node.funcargs or {}  # None if the test was interrupted
    if folder := values.get("tmp_path"):
        for name in sys.modules.keys() - before:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(f"{folder}/"):
                del sys.modules[name]


@pytest.fixture
def regions(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """Function that returns the existing files of the shared memory that clients in this test have created."""
    made = list[Path]()

    def create(name: str, create: bool, size: int) -> SharedMemory:
        made.append(Path("/dev/shm") / name)
        return SharedMemory(name, create, size)

    monkeypatch.setattr("stretto_client.shared_memory.SharedMemory", create)
    return lambda: [path for path in made if path.exists()]


@pytest.fixture
def proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables for HTTP proxies, in both cases, to an address at which no server listens."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def nothing_has_ended() -> Iterator[None]:
    """Check that no thread that a stub depends on has failed, in this test or an earlier one."""
    yield
    ended = [ENDED.pop() for _ in range(len(ENDED))]
    assert not ended


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the files whose tests took longest, including setup and teardown."""
    seconds = Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration  # of a suite, the file of the class
    if len(seconds) > 1:
        terminalreporter.section("seconds by file")
        for path, took in seconds.most_common(15):
            terminalreporter.line(f"{took:8.1f}  {path}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Store whether workers have passed all tests."""
    session.config.stash[ALL_PASSED] = exitstatus == 0 and session.config.getoption("workers") > 0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> Generator[None]:
    """Return excluded objects to garbage collection; otherwise Triton's bindings report them as leaked.

    If workers have run the tests and these have passed, the process ends here instead: to free two million objects
    takes it 20 s of processor time.
    """
    yield
    if config.stash.get(ALL_PASSED, False):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    heap.take_back()
