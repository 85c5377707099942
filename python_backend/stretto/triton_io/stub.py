"""The process that Triton runs a model's `model.py` in."""

import locale
import os


def use_utf8() -> None:
    """Leave the C locale, which the stub starts in whatever the environment says, before torch reads its templates."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")


def fork_engine() -> None:
    """Have vLLM fork its engine from this process, which has imported it, and not start another that imports it again.

    Safe here: nothing else runs in the stub while its model initializes, and OpenMP has not started threads.
    """
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")


def server_pid() -> int:
    """The pid of the server that started this stub."""
    return os.getppid()
