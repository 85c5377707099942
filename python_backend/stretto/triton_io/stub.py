"""Process of a Triton python model: event loop, timers, drain flag, and deadlock watchdog."""

import asyncio
import ctypes
import fcntl
import gc
import locale
import logging
import os
import signal
import stat
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
    """Call `poll`, which must not raise, every `period_s` seconds.

    Pollers with equal periods are aligned, because waking the event loop costs more than a poll.
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
    """Wait until `condition`, polled every `period_s` seconds, holds; errors of `condition` are raised."""
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


DRAIN_FILE = "STRETTO_DRAIN_FILE"  # environment variable of the stubs: path of the launcher's file


class DrainGate:
    """Gate that is closed while the file named by the launcher exists; always open without a launcher.

    A passing request holds a lock that the launcher can see, because until the language model has the request nothing
    else shows that it exists.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._num_passing, self._mutex = 0, threading.Lock()
        self._lock = None if path is None else os.open(_lock_file(path), os.O_RDWR | os.O_CREAT, 0o600)

    @classmethod
    def from_environment(cls) -> "DrainGate":
        """Return the gate controlled by this process's launcher."""
        named = os.environ.get(DRAIN_FILE)
        return cls(Path(named) if named else None)

    def enter(self) -> None:
        """Admit one request, from any thread; raise Closing while the server drains."""
        if self._path is None or self._lock is None:
            return
        with self._mutex:  # all requests share one lock, because a descriptor can hold only one
            if not self._num_passing:
                # taken before the file is checked; the launcher checks in the opposite order
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            self._num_passing += 1
        if self._path.exists():
            self.release()
            raise Closing("server is draining")

    def release(self) -> None:
        """Release one request."""
        if self._lock is None:
            return
        with self._mutex:
            self._num_passing -= 1
            if not self._num_passing:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


def is_passing(path: Path) -> bool:
    """Return True if a request is passing the gate at `path`; called by the launcher."""
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

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
LARGE, LARGEST = 4 << 20, 32 << 20


def use_utf8() -> None:
    """Leave the C locale, in which the stub always starts, before torch reads its templates."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")


def close_inherited_sockets() -> None:
    """Close sockets of the server that a restarted stub has inherited.

    While such a socket is open here, its peer does not notice the end of the server or of the connection.
    """
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of this listing
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.close(int(name))


def fork_engine() -> None:
    """Make vLLM fork its engine from this process, which has imported vLLM already, instead of spawning a new one.

    This is safe before the model starts a thread: nothing else runs in the stub during `initialize`, and OpenMP has not
    started threads.
    """
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")


@contextmanager
def no_collection() -> Iterator[None]:
    """Disable garbage collection in the block; this makes the import of vLLM, which keeps all objects, 10 % faster."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def end(reason: str) -> None:
    """End this process, which can no longer work, so that it is restarted."""
    logger.critical("the stub exits: %s", reason)
    os.kill(os.getpid(), signal.SIGKILL)


def start_thread(name: str, run: Callable[[], None]) -> None:
    """Start an essential thread: an exception in it ends the process."""

    def guarded() -> None:
        try:
            run()
        except BaseException:
            logger.exception("the thread %r failed", name)
            end(f"its thread {name!r} has ended")

    threading.Thread(target=guarded, name=name, daemon=True).start()


def server_pid() -> int:
    """Return the pid of the server that started this stub."""
    return os.getppid()


def give_back_large_memory() -> None:
    """Make malloc return blocks larger than LARGE to the system when freed, as the launcher also configures.

    Otherwise malloc keeps blocks of up to LARGEST once one of that size has been freed.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_large_memory() -> None:
    """Make malloc keep blocks of up to LARGEST for reuse, undoing the launcher's setting.

    Tensors are allocated and freed constantly, and fresh pages for each take as long as the work on them.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGEST)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)


PROC = Path("/proc")
LOOK_S = 1.0
LOOKS = 30  # consecutive polls, more than any step or batch goes without a processor
MAX_AWAKE = 10  # polls among them in which another thread may be awake
ASLEEP = frozenset("SIZX")  # includes idle kernel threads and ended processes
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)

Thread = tuple[int, int]  # pid, tid


class HangWatch:
    """Watchdog of threads while `has_work` returns True; `others` are processes that they may wait for."""

    def __init__(
        self, has_work: Callable[[], bool], threads: Sequence[Thread], others: Sequence[int] = (), proc: Path = PROC
    ) -> None:
        self._has_work, self._threads, self._others, self._proc = has_work, tuple(threads), tuple(others), proc
        self._used: list[int] | None = None
        # for each poll since CPU time was last used: True if any thread was awake
        self._looks: deque[bool] = deque(maxlen=LOOKS)
        self._stopped = threading.Event()

    def start(self, name: str) -> None:
        """Poll every second on a separate thread, and end this process if the threads, called `name`, hang."""

        def run() -> None:
            while not self._stopped.wait(LOOK_S):
                if self.poll():
                    end(f"{name} hangs")

        start_thread("hangs", run)

    def stop(self) -> None:
        """Stop polling and drop the reference to `has_work`."""
        self._stopped.set()
        self._has_work = lambda: False

    def poll(self) -> bool:
        """Poll once; return True if all the threads hang. False if /proc is unreadable."""
        used = self._times() if self._has_work() else None
        if used and used == self._used:
            self._looks.append(self._is_anybody_awake())
        else:
            self._looks.clear()
        self._used = used
        return len(self._looks) == LOOKS and sum(self._looks) <= MAX_AWAKE

    def _times(self) -> list[int] | None:
        """Return the processor time used by each thread, in nanoseconds."""
        try:
            files = [self._proc / str(pid) / "task" / str(tid) / "schedstat" for pid, tid in self._threads]
            return [int(file.read_text().split()[0]) for file in files]
        except GONE:
            return None

    def _is_anybody_awake(self) -> bool:
        me = str(threading.get_native_id())
        return any(
            _state(task) not in ASLEEP
            for pid in self._processes()
            for task in _entries(self._proc / str(pid) / "task")
            if task.name != me
        )

    def _processes(self) -> Iterator[int]:
        """Yield the processes of the threads, their children, and the others."""
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
    """Runner of coroutines for threads without a loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start the coroutine and return immediately; errors go to asyncio's exception handler."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).add_done_callback(self._hear)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Cancel running coroutines, let them clean up, and end the thread."""
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

    def _hear(self, done: "Future[None]") -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._loop.call_exception_handler({"message": "a coroutine failed", "exception": error})

    async def _cancel_others(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
