"""The process that Triton runs a model's `model.py` in."""

import ctypes
import locale
import logging
import os
import signal

logger = logging.getLogger(__name__)

M_MMAP_THRESHOLD, LARGE = -3, 4 << 20  # malloc.h


def use_utf8() -> None:
    """Leave the C locale, which the stub starts in whatever the environment says, before torch reads its templates."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")


def fork_engine() -> None:
    """Have vLLM fork its engine from this process, which has imported it, and not start another that imports it again.

    Safe here: nothing else runs in the stub while its model initializes, and OpenMP has not started threads.
    """
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")


def end(reason: str) -> None:
    """End this process, which cannot do its work any more, so that whoever watches it starts another."""
    logger.critical("the stub ends: %s", reason)
    os.kill(os.getpid(), signal.SIGKILL)


def server_pid() -> int:
    """The pid of the server that started this stub."""
    return os.getppid()


def give_back_large_memory() -> None:
    """Have malloc return what is larger than LARGE to the system as soon as it is freed.

    Otherwise it keeps blocks of up to 32 MiB for the next time, once it has seen one of that size freed.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
