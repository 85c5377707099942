"""A scheduler's two calls of a step without the model between them, which answers as it did last."""

import statistics
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from benchmarks.host_work import Call, count_allocations, count_instructions
from benchmarks.stepped_engine import SteppedEngine
from stretto.engine.environment import prepare_environment

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

ROUNDS, STEPS = 15, 12  # the clock's, the first round for warmth; then as many steps for either count


class ReplayedSteps:
    """Requests that decode a row each in every step, as far as `engine`'s scheduler can tell; they end with this."""

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
        """Whether every row decodes, and does so after a step of the engine."""
        before = self._engine.num_decoding()
        self._engine.step()
        return before == self._engine.num_decoding() == self._num_rows

    def __enter__(self) -> "ReplayedSteps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        self._engine.step()  # tells the worker

    def step(self, gauge: Callable[[Call], float]) -> dict[str, float]:
        """One step; what `gauge` says of either call, and of both."""
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
    """Microseconds of the thread's processor time that `call` takes."""
    begun = time.thread_time()
    call()
    return 1e6 * (time.thread_time() - begun)


GAUGES: dict[str, Callable[[Call], float]] = {
    "cpu_us": cpu_us,
    "instructions": count_instructions,
    "allocations": count_allocations,
}


def host_work(ours: ReplayedSteps, stock: ReplayedSteps) -> dict[str, Any]:
    """The median step of either arm by every gauge, and the median ratio between them; the arms take turns."""
    return {name: _compare(gauge, ours, stock, ROUNDS if name == "cpu_us" else 1) for name, gauge in GAUGES.items()}


def _compare(gauge: Callable[[Call], float], ours: ReplayedSteps, stock: ReplayedSteps, rounds: int) -> dict[str, Any]:
    medians = list[dict[str, dict[str, float]]]()
    for _ in range(rounds + 1):
        steps = {name: [arm.step(gauge) for _ in range(STEPS)] for name, arm in (("ours", ours), ("stock", stock))}
        medians.append({name: _median(of_arm) for name, of_arm in steps.items()})
    del medians[0]  # which warmed up
    ratio = statistics.median(each["ours"]["all"] / each["stock"]["all"] for each in medians)
    return {"ratio": round(ratio, 4)} | {name: _median([each[name] for each in medians]) for name in ("ours", "stock")}


def _median(parts: list[dict[str, float]]) -> dict[str, float]:
    return {part: round(statistics.median(each[part] for each in parts), 1) for part in parts[0]}
