"""Triton's process for one model: event loop, timers, drain gate, memory settings, deadlock watchdog."""

import asyncio
import ctypes
import fcntl
import gc
import locale
import logging
import os
import signal
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from stretto.errors import Closing


@contextmanager
def ticking(poll: Callable[[], None], period_s: float) -> Iterator[None]:
    """Call `poll` every `period_s` during the `with` block; it must not raise an exception.

    All pollers with equal periods are called at the same times, because waking the event loop costs more than a poll.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal timer
        timer = set_timer()
        poll()

    def set_timer() -> asyncio.TimerHandle:
        return loop.call_at((loop.time() // period_s + 1) * period_s, tick)

    timer = set_timer()
    try:
        yield
    finally:
        timer.cancel()


async def wait_until(condition: Callable[[], bool], period_s: float) -> None:
    """Poll `condition` every `period_s` until it is true; re-raise its exceptions."""
    done = asyncio.get_running_loop().create_future()

    def poll() -> None:
        if done.done():
            return
        try:
            if condition():
                done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    poll()
    with ticking(poll, period_s):
        await done


ENCODINGS = "STRETTO_ENCODINGS"  # environment variable: folder for the encodings of voices
PRONUNCIATIONS = "STRETTO_PRONUNCIATIONS"  # environment variable: file of the server's pronunciation dictionary
MARKER = "STRETTO_MARKER"  # environment variable: marker of generated speech, instead of the decoder's parameter
DRAIN_FILE = "STRETTO_DRAIN_FILE"  # environment variable of the stubs: path of the launcher's file


class DrainGate:
    """Gate that refuses requests while the launcher's drain file exists.

    Without a launcher, the gate is always open. While requests pass the gate, it holds a lock that the launcher checks.
    Until the language model has a request, nothing else shows that it exists.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._num_passing = 0
        self._mutex = threading.Lock()
        self._lock = None if path is None else os.open(_lock_file(path), os.O_RDWR | os.O_CREAT, 0o600)

    @classmethod
    def from_environment(cls) -> "DrainGate":
        """Return the gate for the drain file that the launcher has named in the environment."""
        named = os.environ.get(DRAIN_FILE)
        return cls(Path(named) if named else None)

    def enter(self) -> None:
        """Admit one request; raise Closing while the server drains. Any thread may call this."""
        if self._path is None or self._lock is None:
            return
        with self._mutex:  # all requests share one lock, because a descriptor can hold only one
            if not self._num_passing:
                # locked before checking for the file, because the launcher creates the file before it checks the lock
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            self._num_passing += 1
        if self._path.exists():
            self.release()
            raise Closing("server is draining")

    def release(self) -> None:
        """Record that an admitted request has passed the gate."""
        if self._lock is None:
            return
        with self._mutex:
            self._num_passing -= 1
            if not self._num_passing:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


def is_passing(path: Path) -> bool:
    """Return True if a stub has admitted a request that the language model does not have yet (`DrainGate`)."""
    if not _lock_file(path).exists():
        return False
    descriptor = os.open(_lock_file(path), os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}_passing")


logger = logging.getLogger(__name__)

# from malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGE = 4 << 20
LARGEST = 32 << 20


def use_utf8() -> None:
    """Switch to a UTF-8 locale, because stubs start in the C locale; call this before torch reads its templates."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")


def close_inherited_sockets() -> None:
    """Close the server's sockets, which a restarted stub inherits.

    While such a socket is open here, its peer does not notice that the server or the connection has ended.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of this listing
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.close(int(name))


def end(reason: str) -> None:
    """Log the reason and kill this process, so that it is restarted."""
    logger.critical("the stub exits: %s", reason)
    os.kill(os.getpid(), signal.SIGKILL)


def start_thread(name: str, run: Callable[[], None]) -> None:
    """Start an essential daemon thread. An exception in the thread kills this process."""

    def guarded() -> None:
        try:
            run()
        except BaseException:
            logger.exception("the thread %r failed", name)
            end(f"its thread {name!r} has ended")

    threading.Thread(target=guarded, name=name, daemon=True).start()


SWITCH_INTERVAL_S = 5e-4


def switch_threads_often() -> None:
    """Let a busy thread yield after 0.5 ms instead of 5, because a chunk passes through several threads."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def keep_loaded_objects() -> None:
    """Exclude the objects that exist now from garbage collection, once everything is loaded.

    A full collection of torch's and transformers' objects stops all threads for 0.3 s.
    """
    gc.collect()
    gc.freeze()


def server_pid() -> int:
    """Return the pid of the server that started this stub."""
    return os.getppid()


def give_back_large_memory() -> None:
    """Make malloc return freed blocks larger than LARGE to the system, as the launcher sets it.

    Otherwise malloc keeps blocks of up to LARGEST once one of that size has been freed.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_large_memory() -> None:
    """Make malloc keep freed blocks of up to LARGEST for reuse, contrary to the launcher's setting.

    Tensors are allocated and freed constantly, and page faults on new memory would take as long as the computation.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGEST)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)


MPS_PRIORITY = "CUDA_MPS_CLIENT_PRIORITY"
MPS_SHARE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"


def let_others_first() -> None:
    """Give this process's kernels a low priority if processes share the GPU by NVIDIA's MPS.

    Call this before CUDA is initialised.
    """
    os.environ.setdefault(MPS_PRIORITY, "1")


def limit_gpu_share(percent: int) -> None:
    """Limit this process's kernels to 1 to 100 percent of the multiprocessors, if processes share the GPU by MPS.

    A low priority is not enough, because kernels of other processes would still wait for this process's running blocks.
    Call this before CUDA is initialised.
    """
    os.environ.setdefault(MPS_SHARE, str(percent))


PROC = Path("/proc")
CHECK_INTERVAL_S = 1.0
NUM_CHECKS = 30  # consecutive polls; no step or batch waits this long for a CPU
MAX_AWAKE = 10  # number of these polls in which another thread may be awake
ASLEEP = frozenset("SIZX")  # process states, including those of idle kernel threads and ended processes
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)

Thread = tuple[int, int]  # pid, tid


class HangWatch:
    """Watchdog for threads that hang (deadlock) although there is work.

    The threads are considered hung if they use no CPU time during NUM_CHECKS polls. Other threads that they may be
    waiting for must be awake in at most MAX_AWAKE of these polls.

    Args:
        has_work: Returns True while the threads should make progress.
        threads: Threads to watch, as (pid, tid).
        others: Pids of other processes that the threads may wait for.
    """

    def __init__(
        self, has_work: Callable[[], bool], threads: Sequence[Thread], others: Sequence[int] = (), proc: Path = PROC
    ) -> None:
        self._has_work = has_work
        self._threads = tuple(threads)
        self._others = tuple(others)
        self._proc = proc
        self._used: list[int] | None = None
        # for each poll since the threads last used CPU time: True if any thread was awake
        self._checks: deque[bool] = deque(maxlen=NUM_CHECKS)
        self._stopped = threading.Event()

    def start(self, name: str) -> None:
        """Poll every second on a separate thread; if the watched threads hang, kill this process."""

        def run() -> None:
            while not self._stopped.wait(CHECK_INTERVAL_S):
                if self.poll():
                    end(f"{name} hangs")

        start_thread("hangs", run)

    def stop(self) -> None:
        """Stop polling and drop the reference to `has_work`."""
        self._stopped.set()
        self._has_work = lambda: False

    def poll(self) -> bool:
        """Poll once; return True if the threads hang, and False if /proc cannot be read."""
        used = self._times() if self._has_work() else None
        if used and used == self._used:
            self._checks.append(self._is_any_awake())
        else:
            self._checks.clear()
        self._used = used
        return len(self._checks) == NUM_CHECKS and sum(self._checks) <= MAX_AWAKE

    def _times(self) -> list[int] | None:
        """Return the CPU time used by each thread, in nanoseconds; None if one has ended."""
        try:
            files = [self._proc / str(pid) / "task" / str(tid) / "schedstat" for pid, tid in self._threads]
            return [int(file.read_text().split()[0]) for file in files]
        except GONE:
            return None

    def _is_any_awake(self) -> bool:
        me = str(threading.get_native_id())
        return any(
            _state(task) not in ASLEEP
            for pid in self._processes()
            for task in _entries(self._proc / str(pid) / "task")
            if task.name != me
        )

    def _processes(self) -> Iterator[int]:
        """Yield the pids of the watched threads' processes, their descendants, and the other processes."""
        yield from self._others
        queue = list({pid for pid, _ in self._threads})
        while queue:
            pid = queue.pop()
            yield pid
            for task in _entries(self._proc / str(pid) / "task"):
                with suppress(*GONE):
                    queue += map(int, (task / "children").read_text().split())


def _entries(folder: Path) -> Iterable[Path]:
    with suppress(*GONE):
        return list(folder.iterdir())
    return ()


def _state(task: Path) -> str:
    with suppress(*GONE):
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    return "X"


T = TypeVar("T")


class EventLoop:
    """Event loop on its own thread, for callers on other threads."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start the coroutine and return immediately; its errors go to asyncio's exception handler."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).add_done_callback(self._report_error)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Cancel all coroutines, let them clean up, and end the thread."""
        self._is_closing = True
        self.run(self._cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            if not self._is_closing:
                end(f"the event loop of the {self._thread.name} has ended")

    def _report_error(self, done: "Future[None]") -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._loop.call_exception_handler({"message": "a coroutine failed", "exception": error})

    async def _cancel_others(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
