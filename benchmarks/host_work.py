"""Machine-independent cost of a decode step in the Python interpreter: instructions and memory blocks.

`ReplayedSteps` are steps without a model, in which the scheduler repeatedly receives the model's last output.
"""

import ctypes
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from benchmarks.engines import SteppedEngine
from benchmarks.harness import median_ratio
from stretto.engine.environment import prepare_environment

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

Call = Callable[[], Any]

ROUNDS, STEPS = 15, 12  # of the clock, whose first round warms up; steps for each count
_MEMORY, _OBJECTS = 1, 2  # of CPython's `PyMemAllocatorDomain`; both are called with the GIL held
COUNTED = """
#include <stddef.h>
struct counter { long long number; void *(*malloc)(void *, size_t); };
void *counted(struct counter *counter, size_t size) { counter->number++; return counter->malloc(NULL, size); }
"""


class _Allocator(ctypes.Structure):
    """CPython's `PyMemAllocatorEx`."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("context", "malloc", "calloc", "realloc", "free"))


class _Counter(ctypes.Structure):
    """`struct counter`: the number of blocks, and the function that allocates them."""

    _fields_ = (("number", ctypes.c_longlong), ("malloc", ctypes.c_void_p))


def count_instructions(call: Call, is_one: Callable[[CodeType], bool] = lambda code: False) -> int:
    """Return how many Python instructions `call` runs in this thread; each call of a C function counts as one.

    Args:
        call: Function to run.
        is_one: Returns True for a function that counts as one instruction, including everything that it calls.
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
    """Return how many memory blocks `call` requests from Python's allocators; objects from free lists do not count."""
    of_memory, of_objects = _Counter(), _Counter()
    with _counting(_MEMORY, of_memory), _counting(_OBJECTS, of_objects):
        before = of_memory.number + of_objects.number
        call()
        return of_memory.number + of_objects.number - before


@contextmanager
def _counting(domain: int, counter: _Counter) -> Iterator[None]:
    """Count the allocations of `domain` in `counter`."""
    plain = _Allocator()
    ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(plain))
    assert plain.context is None, "the allocator has its own context (PYTHONMALLOC?), which the counter would replace"
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
    """Compile the counter; written in Python, it would itself allocate blocks."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "counted.c"), Path(folder, "counted.so")
        source.write_text(COUNTED)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        return ctypes.CDLL(str(library))


class ReplayedSteps:
    """Requests that decode one row per step from the view of the scheduler of `engine`. They end with this object."""

    def __init__(
        self, engine: SteppedEngine, prompts: Iterable[list[int]], params: Iterable[SamplingParams], num_rows: int
    ):
        self._engine, self._scheduler, self._num_rows = engine, engine.scheduler, num_rows
        engine.add(prompts, params)
        take = self._scheduler.update_from_output

        def keep(scheduled: Any, output: Any) -> Any:
            self._output, self._logprobs = output, output.logprobs
            return take(scheduled, output)

        self._scheduler.update_from_output = keep
        while not self._decodes():
            pass
        del self._scheduler.update_from_output

    def _decodes(self) -> bool:
        """Step the engine; return True if every row decoded before and after."""
        before = self._engine.num_decoding()
        self._engine.step()
        return before == self._engine.num_decoding() == self._num_rows

    def __enter__(self) -> "ReplayedSteps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        self._engine.step()  # informs the worker

    def step(self, gauge: Callable[[Call], float]) -> dict[str, float]:
        """Run one step; return the gauge of `schedule`, of `update_from_output`, and their sum."""
        scheduled: Any = None

        def schedule() -> None:
            nonlocal scheduled
            scheduled = self._scheduler.schedule()

        of_schedule = gauge(schedule)
        assert scheduled.total_num_scheduled_tokens == self._num_rows, "a request has ended, or was preempted"
        output = self._output
        output.logprobs, output.sampled_token_ids = self._logprobs, [list(ids) for ids in output.sampled_token_ids]
        of_update = gauge(lambda: self._scheduler.update_from_output(scheduled, output))
        return {"schedule": of_schedule, "update": of_update, "all": of_schedule + of_update}


def cpu_us(call: Call) -> float:
    """Return the microseconds of this thread's processor time that `call` takes."""
    begun = time.thread_time()
    call()
    return 1e6 * (time.thread_time() - begun)


GAUGES: dict[str, Callable[[Call], float]] = {
    "cpu_us": cpu_us,
    "instructions": count_instructions,
    "allocations": count_allocations,
}


def host_work(ours: ReplayedSteps, stock: ReplayedSteps) -> dict[str, Any]:
    """Return the median step of both arms by every gauge, and the median ratio; the arms take turns."""
    return {name: _compare(gauge, ours, stock, ROUNDS if name == "cpu_us" else 1) for name, gauge in GAUGES.items()}


def _compare(gauge: Callable[[Call], float], ours: ReplayedSteps, stock: ReplayedSteps, rounds: int) -> dict[str, Any]:
    turns = [
        {name: median_parts([arm.step(gauge) for _ in range(STEPS)], 1) for name, arm in arms.items()}
        for arms in [{"ours": ours, "stock": stock}] * (rounds + 1)
    ][1:]  # the first warms up
    ratio = median_ratio(*([turn[name]["all"] for turn in turns] for name in ("ours", "stock")))
    return {"ratio": round(ratio, 4)} | {
        name: median_parts([turn[name] for turn in turns], 1) for name in ("ours", "stock")
    }


def median_parts(parts: list[dict[str, float]], digits: int) -> dict[str, float]:
    """Return the median of each part."""
    return {part: round(statistics.median(each[part] for each in parts), digits) for part in parts[0]}
