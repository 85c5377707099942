"""Measure the cost of scheduling a step with CFG pairs, compared with stock vLLM.

    python -m benchmarks.scheduler --pairs 1 8 32

The calls measured are `schedule` and `update_from_output`. Guided replies in their audio segment alternate, in this
process, with greedy decoding by stock vLLM at the same number of rows. Only steps in which every row decodes are
counted. `scheduler_ratio` is Stretto's time divided by the time of stock vLLM, in processor time of the thread while
the engine runs. Between the two calls, the model's forward pass evicts the processor's caches. `replayed` covers only
the two calls, with the model's last output repeated. It has microseconds, which are less sensitive to other processes,
and counts of Python instructions, which are not sensitive to them.

`step` has the number of Python instructions in a complete step: everything that the engine core does, from `schedule`
to the outputs. Work that a GPU runs as a graph or kernel (the model's forward pass and vLLM's kernels) counts as one
call on both sides. The sampler is the one for GPUs, with its tables in host memory, so waits for a device are not
measured. Its kernel launches are left out, and it repeats the same rows. The benchmark writes one line of JSON for each
number of pairs.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from benchmarks.engine import SpeechArm, StockArm
from benchmarks.engines import MethodWatch, SteppedEngine
from benchmarks.harness import CHECKPOINT, ENGINE_ARGS, append_result, command_line, median_ratio
from stretto import cpu_backend as cpu_kernels
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.engine.protocol import STATS_KEY, SharedStats
from stretto.engine.worker.sampler import SpeechSampler

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

Call = Callable[[], Any]

# timed rounds, the first of which warms up; counted steps
ROUNDS = 15
STEPS = 12


def count_instructions(call: Call, is_one: Callable[[CodeType], bool] = lambda code: False) -> int:
    """Return how many Python instructions `call` runs in this thread; a call to a C function counts as one.

    Args:
        call: Function to run.
        is_one: Returns True for a function that counts as one instruction, including everything that it calls.
    """
    number = 0
    inside = None

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
                inside = frame
                frame.f_trace_lines = False
                return leave
            frame.f_trace_lines = False
            frame.f_trace_opcodes = True
        number += event == "opcode"
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        call()
    finally:
        sys.settrace(before)
    return number


class ReplayedSteps:
    """Requests that, for the scheduler of `engine`, decode one row per step. They end with this object."""

    def __init__(
        self, engine: SteppedEngine, prompts: Iterable[list[int]], params: Iterable[SamplingParams], num_rows: int
    ):
        self._engine = engine
        self._scheduler = engine.scheduler
        self._num_rows = num_rows
        engine.add(prompts, params)
        take = self._scheduler.update_from_output

        def keep(scheduled: Any, output: Any) -> Any:
            self._output = output
            self._logprobs = output.logprobs
            return take(scheduled, output)

        self._scheduler.update_from_output = keep
        while not self._decodes():
            pass
        del self._scheduler.update_from_output

    def _decodes(self) -> bool:
        """Step the engine; return True if every row was decoding both before and after the step."""
        before = self._engine.num_decoding()
        self._engine.step()
        return before == self._engine.num_decoding() == self._num_rows

    def __enter__(self) -> "ReplayedSteps":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        self._engine.step()  # informs the worker

    def step(self, gauge: Callable[[Call], float]) -> dict[str, float]:
        """Run one step; return what `gauge` measures for `schedule` and `update_from_output`, and the sum."""
        scheduled: Any = None

        def schedule() -> None:
            nonlocal scheduled
            scheduled = self._scheduler.schedule()

        of_schedule = gauge(schedule)
        assert scheduled.total_num_scheduled_tokens == self._num_rows, "a request has ended or was preempted"
        output = self._output
        output.logprobs = self._logprobs
        output.sampled_token_ids = [list(ids) for ids in output.sampled_token_ids]
        of_update = gauge(lambda: self._scheduler.update_from_output(scheduled, output))
        return {"schedule": of_schedule, "update": of_update, "all": of_schedule + of_update}


def cpu_us(call: Call) -> float:
    """Return how many microseconds of this thread's processor time `call` takes."""
    begun = time.thread_time()
    call()
    return 1e6 * (time.thread_time() - begun)


GAUGES: dict[str, Callable[[Call], float]] = {"cpu_us": cpu_us, "instructions": count_instructions}


def host_work(ours: ReplayedSteps, stock: ReplayedSteps) -> dict[str, Any]:
    """Alternate the arms; return each arm's median step for every gauge, and the median ratio."""
    return {name: _compare(gauge, ours, stock, ROUNDS if name == "cpu_us" else 1) for name, gauge in GAUGES.items()}


def _compare(gauge: Callable[[Call], float], ours: ReplayedSteps, stock: ReplayedSteps, rounds: int) -> dict[str, Any]:
    turns = [
        {name: median_parts([arm.step(gauge) for _ in range(STEPS)], 1) for name, arm in arms.items()}
        for arms in [{"ours": ours, "stock": stock}] * (rounds + 1)
    ][1:]  # the first round warms up
    ratio = median_ratio(*([turn[name]["all"] for turn in turns] for name in ("ours", "stock")))
    return {"ratio": round(ratio, 4)} | {
        name: median_parts([turn[name] for turn in turns], 1) for name in ("ours", "stock")
    }


def median_parts(parts: list[dict[str, float]], digits: int) -> dict[str, float]:
    """Return the median of each part, rounded to `digits`."""
    return {name: round(statistics.median(step[name] for step in parts), digits) for name in parts[0]}


SCALE = 1.5
REPLAYED_FRAMES = 400


class SchedulerWatch(MethodWatch):
    """Times of the two calls of a scheduler, for each step that decodes `num_rows` rows."""

    def __init__(self, scheduler: Any, num_rows: int):
        super().__init__()
        self._num_rows = num_rows
        self.schedule_s: list[float] = []
        self.update_s: list[float] = []
        self.replace(scheduler, "schedule", lambda inner: self._timed(inner, self.schedule_s))
        self.replace(scheduler, "update_from_output", lambda inner: self._timed(inner, self.update_s))

    def _timed(self, inner: Callable[..., Any], times_s: list[float]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begun = time.thread_time()
            result = inner(*args)
            took = time.thread_time() - begun
            scheduled = (args[0] if times_s is self.update_s else result).num_scheduled_tokens
            if len(scheduled) == sum(scheduled.values()) == self._num_rows:
                times_s.append(took)
            return result

        return timed

    def take_ms(self) -> dict[str, float]:
        """Return the median milliseconds per step since the last call of this method."""
        taken = {"schedule": self.schedule_s, "update": self.update_s}
        figures = {name: 1e3 * statistics.median(times) for name, times in taken.items()}
        for times in taken.values():
            times.clear()
        return figures | {"all": sum(figures.values())}


def measure(pairs: int, arguments: argparse.Namespace, ours: SpeechArm, stock: StockArm) -> dict[str, Any]:
    """Alternate both arms; return the medians over the rounds of their times and of the ratio within a round."""
    num_rows = 2 * pairs
    frames = arguments.frames
    watches = {name: SchedulerWatch(arm.engine.scheduler, num_rows) for name, arm in (("ours", ours), ("stock", stock))}
    rounds = []
    for _ in range(arguments.rounds + 1):
        ours.time_steps(pairs, frames, SCALE)
        stock.time_steps(num_rows, frames)
        rounds.append({name: watch.take_ms() for name, watch in watches.items()})
    del rounds[0]  # it warms up
    for watch in watches.values():
        watch.stop()
    with (
        ReplayedSteps(ours.engine, *ours.requests(pairs, REPLAYED_FRAMES, SCALE), num_rows) as of_ours,
        ReplayedSteps(stock.engine, *stock.requests(num_rows, REPLAYED_FRAMES), num_rows) as of_stock,
    ):
        replayed = host_work(of_ours, of_stock)
    return {
        "pairs": pairs,
        "frames": frames,
        "rounds": arguments.rounds,
        "scheduler_ratio": round(median_ratio(*([times[name]["all"] for times in rounds] for name in watches)), 4),
        "cpu_ms_per_step": {name: median_parts([times[name] for times in rounds], 4) for name in watches},
        "replayed": replayed,
    }


# ----- a complete step

FRAMES = 200
WARM_UP = 20
COUNTED_STEPS = 8
TWINS = str(Path(cpu_kernels.__file__).parent)
MODELS = "multi_stream.py", "backbones.py"


def is_of_the_device(code: CodeType) -> bool:
    """Return True if a function is a single call on a GPU: a kernel's CPU version, or the model's forward pass."""
    is_forward = code.co_name == "forward" and code.co_filename.endswith(MODELS)
    return is_forward or code.co_filename.startswith(TWINS)


def settle(engine: SteppedEngine, num_rows: int) -> None:
    """Step until every row decodes, then run WARM_UP further steps."""
    left = WARM_UP
    while left:
        before = engine.num_decoding()
        engine.step()
        left -= before == engine.num_decoding() == num_rows


def sample_as_a_gpu(engine: SteppedEngine) -> SpeechSampler:
    """Replace the CPU sampler with the GPU sampler, which repeats the last output; return the CPU sampler."""
    runner = engine.runner
    outputs = list[Any]()
    state = runner.model_state
    plain = runner.sampler
    inner = SpeechSampler.__call__

    def keep(self: SpeechSampler, *step: Any) -> Any:
        outputs.append(inner(self, *step))
        return outputs[-1]

    setattr(SpeechSampler, "__call__", keep)  # noqa: B010  (mypy refuses an assignment to a method)
    engine.step()
    setattr(SpeechSampler, "__call__", inner)  # noqa: B010
    plain.req_states = runner.req_states
    sampler = state._kernel_sampler(plain)
    output = outputs[-1]
    tokens, codes, _, sampled = sampler._results(sampler._program.results, len(output.sampled_token_ids))
    tokens.copy_(output.sampled_token_ids[:, 0])
    codes.copy_(output.logprobs_tensors.logprob_token_ids)
    sampled.copy_(output.num_sampled)
    sampler._graphs.run = lambda variant, num_rows: None
    runner.sampler = sampler
    engine.step()
    return plain


def instructions(engine: SteppedEngine, num_rows: int) -> float:
    """Return the median number of instructions in a step that decodes `num_rows` rows."""
    counts = [count_instructions(engine.step, is_of_the_device) for _ in range(COUNTED_STEPS)]
    assert engine.num_decoding() == num_rows, "a request has ended or was preempted"
    return statistics.median(counts)


def finish(engine: SteppedEngine) -> None:
    """Abort all requests, in the scheduler and in the worker."""
    engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    engine.step()


def measure_step(pairs: int, ours: SpeechArm, stock: StockArm) -> dict[str, float]:
    """Return the number of Python instructions in a complete step of each arm, and the ratio."""
    num_rows = 2 * pairs
    ours.engine.add(*ours.requests(pairs, FRAMES, SCALE))
    settle(ours.engine, num_rows)
    plain = sample_as_a_gpu(ours.engine)
    columns = ours.engine.runner.sampler._program.columns
    uploads = columns.num_uploads
    of_ours = instructions(ours.engine, num_rows)
    assert columns.num_uploads == uploads, "a steady step has uploaded something"
    ours.engine.runner.sampler = plain
    finish(ours.engine)
    stock.engine.add(*stock.requests(num_rows, FRAMES))
    settle(stock.engine, num_rows)
    of_stock = instructions(stock.engine, num_rows)
    finish(stock.engine)
    return {"ratio": round(of_ours / of_stock, 4), "ours": of_ours, "stock": of_stock}


if __name__ == "__main__":
    parsed = command_line(
        __doc__,
        "scheduler",
        pairs=([1, 8, 32], "numbers of guided replies per step"),
        frames=(64, "frames per reply"),
        rounds=(15, "number of turns for each arm"),
        checkpoint=(CHECKPOINT, "checkpoint to load"),
    ).parse_args()
    config = EngineConfig.from_file(ENGINE_ARGS, parsed.checkpoint)
    cpu_kernels.install()
    shared = SharedStats.create(1)  # our scheduler publishes its statistics, as in production
    observed = replace(config, engine_args={**config.engine_args, "additional_config": {STATS_KEY: str(shared.path)}})
    both = SpeechArm(observed), StockArm(config)
    shared.close()
    for number in parsed.pairs:
        figures = measure(number, parsed, *both) | {"step": measure_step(number, *both)}
        append_result(parsed.out, "scheduler", figures)
