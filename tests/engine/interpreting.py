"""Triton's interpreter without what takes half of its time: it patches the language anew at each call of a function."""

from types import FunctionType
from typing import Any

from triton.runtime import interpreter

_patch = interpreter._patch_lang
_patched: dict[int, Any] = {}  # by the functions' modules, until the launch ends


class _Launch:
    """What the interpreter restores when a launch has ended."""

    def restore(self) -> None:
        while _patched:
            _patched.popitem()[1].restore()  # the last first


def _patch_once(fn: FunctionType) -> _Launch:
    module = id(fn.__globals__)
    if module not in _patched:
        _patched[module] = _patch(fn)
    return _Launch()


def patch_once_a_launch() -> None:
    """Patch the language for a launch's kernel and for what it calls in other modules, and not for each call."""
    interpreter._patch_lang = _patch_once
