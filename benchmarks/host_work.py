"""What a call costs the interpreter whatever the machine is and does besides: instructions, and blocks of memory."""

import ctypes
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

Call = Callable[[], Any]

_MEMORY, _OBJECTS = 1, 2  # of CPython's `PyMemAllocatorDomain`; both are asked with the interpreter's lock held
COUNTED = """
#include <stddef.h>
struct counter { long long number; void *(*malloc)(void *, size_t); };
void *counted(struct counter *counter, size_t size) { counter->number++; return counter->malloc(NULL, size); }
"""


class _Allocator(ctypes.Structure):
    """CPython's `PyMemAllocatorEx`."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("context", "malloc", "calloc", "realloc", "free"))


class _Counter(ctypes.Structure):
    """`struct counter`: blocks asked for, and who makes them."""

    _fields_ = (("number", ctypes.c_longlong), ("malloc", ctypes.c_void_p))


def count_instructions(call: Call, is_one: Callable[[CodeType], bool] = lambda code: False) -> int:
    """How many of Python's instructions `call` runs in this thread; what it calls in C counts as one each.

    is_one: whether a function counts like one in C, with all that it calls.
    """
    number, inside = 0, None

    def leave(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal inside
        if event == "return" and frame is inside:
            inside = None
        return leave

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal number, inside
        if event == "call":
            if inside is not None:
                return None
            if is_one(frame.f_code):
                inside, frame.f_trace_lines = frame, False
                return leave
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        number += event == "opcode"
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        call()
    finally:
        sys.settrace(before)
    return number


def count_allocations(call: Call) -> int:
    """How many blocks of memory `call` has Python's allocators make; what free lists have ready is not among them."""
    of_memory, of_objects = _Counter(), _Counter()
    with _counting(_MEMORY, of_memory), _counting(_OBJECTS, of_objects):
        before = of_memory.number + of_objects.number
        call()
        return of_memory.number + of_objects.number - before


@contextmanager
def _counting(domain: int, counter: _Counter) -> Iterator[None]:
    """Add up in `counter` how often the allocator of `domain` is asked for a block."""
    plain = _Allocator()
    ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(plain))
    assert plain.context is None, "an allocator with a context of its own (PYTHONMALLOC?), which the counter's replaces"
    counter.malloc = plain.malloc
    counting = _Allocator.from_buffer_copy(plain)
    counting.context, counting.malloc = ctypes.addressof(counter), ctypes.cast(_library().counted, ctypes.c_void_p)
    ctypes.pythonapi.PyMem_SetAllocator(domain, ctypes.byref(counting))
    try:
        yield
    finally:
        ctypes.pythonapi.PyMem_SetAllocator(domain, ctypes.byref(plain))


@functools.cache
def _library() -> ctypes.CDLL:
    """The counter, compiled: one in Python would itself ask for blocks."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "counted.c"), Path(folder, "counted.so")
        source.write_text(COUNTED)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        return ctypes.CDLL(str(library))
