"""An engine core in this process, stepped by hand, and a watch that says where a step's time goes."""

import itertools
import statistics
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stretto.engine.environment import prepare_environment

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.v1.engine.core import EngineCore  # noqa: E402
from vllm.v1.executor import Executor  # noqa: E402
from vllm.v1.request import Request  # noqa: E402

from stretto.engine.worker import sampler as drawing  # noqa: E402
from stretto.engine.worker.step_program import StepSampler  # noqa: E402


@dataclass(frozen=True, slots=True)
class StepTime:
    """Milliseconds of a decode step: of the clock on the wall, and of this thread's processor time."""

    wall_ms: float
    cpu_ms: float


class SteppedEngine:
    """One engine core in this process; its KV cache goes with it."""

    def __init__(self, config: Any):
        self.core = EngineCore(config, Executor.get_class(config), log_stats=False)
        # vLLM has frozen what it made, so that no garbage collection would ever find the cache. Not `core.shutdown`:
        # it takes the process's groups away from its other engines too.
        weakref.finalize(self, self.core.model_executor.shutdown).atexit = False
        self.scheduler: Any = self.core.scheduler
        self._ids = itertools.count()

    @property
    def runner(self) -> Any:
        """The worker's model runner."""
        executor: Any = self.core.model_executor
        return executor.driver_worker.worker.model_runner

    def add(self, prompts: Iterable[list[int]], params: Iterable[SamplingParams]) -> list[str]:
        """Put prompts of stream 0 in the queue, each with its parameters; returns their ids."""
        # vLLM keeps it for the whole process, and the last engine to start has set it.
        self.core.vllm_config.kernel_config.ir_op_priority.set_default()
        ids = list[str]()
        for tokens, wanted in zip(prompts, params, strict=True):
            hasher = self.core.request_block_hasher
            ids.append(f"r{next(self._ids)}")
            self.core.add_request(Request(ids[-1], tokens, wanted, None, block_hasher=hasher))
        return ids

    def step(self) -> Any:
        """One step of the engine; returns what leaves it."""
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        return outputs

    def time_steps(self, prompts: Iterable[list[int]], params: Iterable[SamplingParams], num_rows: int) -> StepTime:
        """Run the prompts to their end; the median step among those in which `num_rows` rows decode."""
        self.add(prompts, params)
        wall_ms, cpu_ms = [], []
        while self.scheduler.has_requests():
            rows_before, wall, cpu = self.num_decoding(), time.perf_counter(), time.thread_time()
            self.step()
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            if rows_before == self.num_decoding() == num_rows:
                wall_ms.append(1e3 * wall)
                cpu_ms.append(1e3 * cpu)
        assert len(wall_ms) > 8, f"only {len(wall_ms)} steps with {num_rows} decoding rows"
        return StepTime(statistics.median(wall_ms), statistics.median(cpu_ms))

    def num_decoding(self) -> int:
        """Rows that the next step decodes: running requests whose prompts have been read."""
        running = self.scheduler.running
        return sum(request.num_computed_tokens >= request.num_prompt_tokens for request in running)


class Watch:
    """Processor time by part: a call inside another counts for its own part only, so that the parts add up."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._parts = ["rest"]
        self._since = time.thread_time()
        self._wrapped: list[tuple[Any, str, Any]] = []

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Let what `owner.method` takes count for `part`, on this one object."""
        inner: Callable[..., Any] = getattr(owner, method)
        self._wrapped.append((owner, method, vars(owner).get(method)))

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._parts.append(part)
            try:
                return inner(*args, **kwargs)
            finally:
                self._turn()
                self._parts.pop()

        setattr(owner, method, timed)

    def stop(self) -> None:
        """Take the watch off again, so that later steps do not pay for it."""
        while self._wrapped:
            owner, method, own = self._wrapped.pop()
            delattr(owner, method) if own is None else setattr(owner, method, own)

    def _turn(self) -> None:
        now = time.thread_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def restart(self) -> None:
        """Forget what has passed so far."""
        self._turn()
        self.seconds.clear()

    def ms_per(self, number: int) -> dict[str, float]:
        """Milliseconds of each part, over `number`."""
        self._turn()
        return {part: round(1e3 * seconds / number, 4) for part, seconds in self.seconds.items()}


def watch(engine: SteppedEngine) -> Watch:
    """A watch over the parts of a step of ours."""
    parts, runner, scheduler = Watch(), engine.runner, engine.scheduler
    state, sampler = runner.model_state, runner.sampler
    watched: list[tuple[Any, str, str]] = [
        (scheduler, "schedule", "schedule"),
        (scheduler, "update_from_output", "update"),
        (runner, "add_requests", "requests"),
        (runner, "update_requests", "requests"),
        (runner, "prepare_inputs", "prepare"),
        (runner, "prepare_attn", "prepare"),
        (state, "prepare_attn", "prepare"),
        (state, "prepare_inputs", "prepare_codes"),
        (runner.model, "embed_rows", "embed"),
        (runner.model, "forward", "forward"),
        (runner, "postprocess_sampled", "postprocess"),
    ]
    if isinstance(sampler, StepSampler):  # heads, guidance and draw are launched at once
        watched.append((sampler._graphs, "run", "draw"))
    else:
        watched += [(drawing, "draw", "draw"), (drawing, "guide", "guidance")]
        watched += [(sampler._draw._heads, head, "heads") for head in ("text", "first", "raw_codes")]
    for owner, method, part in watched:
        parts.wrap(owner, method, part)
    parts.wrap(runner, "sample_tokens", "sample")
    parts.wrap(runner, "execute_model", "execute")
    return parts
