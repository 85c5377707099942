"""The process that Triton runs a model's `model.py` in."""

import locale
import os


def use_utf8() -> None:
    """Leave the C locale, which the stub starts in whatever the environment says, before torch reads its templates."""
    locale.setlocale(locale.LC_ALL, "C.UTF-8")


def server_pid() -> int:
    """The pid of the server that started this stub."""
    return os.getppid()
