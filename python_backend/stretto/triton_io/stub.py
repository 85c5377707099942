"""The process that Triton runs a model's `model.py` in.

A `model.py` imports at its top what costs nothing, this module, and all else where its model initializes. The stub runs
it before it reads the arguments of `initialize`, which lie in shared memory. Triton gives a stub up that shows no sign
of life for a second, as happens on a busy machine, and frees them: if they are still to be read, the stub crashes with
the memory's lock in its hands, and the server with it (pb_stub.cc, `Stub::Initialize`, of python_backend r24.10).
"""

import ctypes
import gc
import locale
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE, LARGEST = 4 << 20, 32 << 20


def use_utf8() -> None:
    """Leave the C locale, which the stub starts in whatever the environment says, before torch reads its templates."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")


def fork_engine() -> None:
    """Have vLLM fork its engine from this process, which has imported it, and not start another that imports it again.

    Safe where the model does so before it starts a thread: nothing else runs in the stub while its model initializes,
    and OpenMP has not started threads.
    """
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection: an import of vLLM, which keeps all that it makes, is faster without by a tenth."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def end(reason: str) -> None:
    """End this process, which cannot do its work any more, so that whoever watches it starts another."""
    logger.critical("the stub ends: %s", reason)
    os.kill(os.getpid(), signal.SIGKILL)


def start_thread(name: str, run: Callable[[], None]) -> None:
    """Start a thread that this process cannot do without: where an exception ends it, the process ends with it."""

    def guarded() -> None:
        try:
            run()
        except BaseException:
            logger.exception("the thread %r failed", name)
            end(f"its thread {name!r} has ended")

    threading.Thread(target=guarded, name=name, daemon=True).start()


def server_pid() -> int:
    """The pid of the server that started this stub."""
    return os.getppid()


def give_back_large_memory() -> None:
    """Have malloc return what is larger than LARGE to the system as soon as it is freed, as the launcher has it do.

    Without either it keeps blocks of up to LARGEST for the next time, once it has seen one of that size freed.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_large_memory() -> None:
    """Have malloc keep blocks of up to LARGEST for the next time, as it would but for the launcher.

    Tensors come and go, and new pages of the system for each of them take as long as the work on them.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGEST)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)
