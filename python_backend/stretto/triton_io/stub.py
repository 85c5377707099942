"""Process in which Triton runs a model's `model.py`.

WORKAROUND(triton python_backend r24.10): a `model.py` imports only this cheap module at its top, and everything else
during `initialize`. The stub executes it before it reads the arguments of `initialize` from shared memory. A stub
without a sign of life for a second, as on a busy machine, is given up and its memory freed; if it then reads them, it
crashes while holding the memory's lock, and the server with it (pb_stub.cc, `Stub::Initialize`).
"""

import ctypes
import gc
import locale
import logging
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
LARGE, LARGEST = 4 << 20, 32 << 20


def use_utf8() -> None:
    """Leave the C locale, in which the stub always starts, before torch reads its templates."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")


def close_inherited_sockets() -> None:
    """Close the server's sockets, of which a stub that is started again inherits those that are open by then.

    With one of them open here, the end of the server or of its connection would not be noticed at the other end.
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
    """Disable garbage collection in the block; importing vLLM, which keeps all objects, is a tenth faster without."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def end(reason: str) -> None:
    """End this process because it cannot work any more, so that it is restarted."""
    logger.critical("the stub ends: %s", reason)
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
