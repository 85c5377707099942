"""Engine cores that run in this process step by step, replies of forced length, and step times by part."""

import itertools
import json
import statistics
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.layouts import LAYOUTS, PROMPT_ROWS, TEXT
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.family.base import Family, Task
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import write_checkpoint

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.v1.engine.core import EngineCore  # noqa: E402
from vllm.v1.executor import Executor  # noqa: E402
from vllm.v1.request import Request  # noqa: E402

from stretto.engine.host import vllm_config  # noqa: E402
from stretto.engine.worker import guided_heads  # noqa: E402
from stretto.engine.worker import sampler as drawing  # noqa: E402
from stretto.engine.worker.step_program import StepSampler  # noqa: E402
from stretto.testing.conformance import sampling_params  # noqa: E402

# of random backbones
HIDDEN = 256
LAYERS = 4


@dataclass(frozen=True, slots=True)
class StepTime:
    """Wall time of a decode step, and processor time of this thread, in milliseconds."""

    wall_ms: float
    cpu_ms: float


class SteppedEngine:
    """Engine core in this process. Its KV cache is freed with it."""

    def __init__(self, config: Any):
        self.core = EngineCore(config, Executor.get_class(config), log_stats=False)
        # vLLM freezes its objects, so garbage collection would never find the cache. `core.shutdown` cannot be used:
        # it also takes the process groups away from the other engines of this process.
        weakref.finalize(self, self.core.model_executor.shutdown).atexit = False
        self.scheduler: Any = self.core.scheduler
        self._ids = itertools.count()

    @classmethod
    def from_args(cls, checkpoint: Path, engine_args: dict[str, Any]) -> "SteppedEngine":
        return cls(vllm_config(EngineConfig(checkpoint, engine_args, {})))

    @property
    def runner(self) -> Any:
        executor: Any = self.core.model_executor
        return executor.driver_worker.worker.model_runner

    def add(self, prompts: Iterable[list[int]], params: Iterable[SamplingParams]) -> list[str]:
        """Queue prompts of stream 0, each with its parameters; return their ids."""
        # The setting is global to the process, and its value is that of the engine that started last.
        self.core.vllm_config.kernel_config.ir_op_priority.set_default()
        ids = list[str]()
        for tokens, wanted in zip(prompts, params, strict=True):
            hasher = self.core.request_block_hasher
            ids.append(f"r{next(self._ids)}")
            self.core.add_request(Request(ids[-1], tokens, wanted, None, block_hasher=hasher))
        return ids

    def requests(self, prompts: Sequence[Prompt]) -> tuple[list[list[int]], list[SamplingParams]]:
        """Return stream 0 of each prompt, and its parameters, for `add`."""
        rules = self.scheduler.table.rules
        return [prompt.rows[:, 0].tolist() for prompt in prompts], [
            sampling_params(prompt, rules) for prompt in prompts
        ]

    def add_prompts(self, prompts: Sequence[Prompt]) -> list[str]:
        return self.add(*self.requests(prompts))

    def step(self) -> Any:
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        return outputs

    def outputs(self) -> Iterator[Any]:
        """Run one step and yield the output of each request."""
        for outputs in (self.step() or {}).values():
            yield from outputs.outputs

    def finish(self) -> int:
        """Step until no request is left; return the number of steps."""
        steps = 0
        while self.scheduler.has_requests():
            self.step()
            steps += 1
        return steps

    def time_steps(self, prompts: Iterable[list[int]], params: Iterable[SamplingParams], num_rows: int) -> StepTime:
        """Run the prompts until all replies end; return the median time of steps that decode `num_rows` rows."""
        self.add(prompts, params)
        wall_ms = []
        cpu_ms = []
        while self.scheduler.has_requests():
            rows_before = self.num_decoding()
            wall = time.perf_counter()
            cpu = time.thread_time()
            self.step()
            wall = time.perf_counter() - wall
            cpu = time.thread_time() - cpu
            if rows_before == self.num_decoding() == num_rows:
                wall_ms.append(1e3 * wall)
                cpu_ms.append(1e3 * cpu)
        assert len(wall_ms) > 8, f"only {len(wall_ms)} steps with {num_rows} decoding rows"
        return StepTime(statistics.median(wall_ms), statistics.median(cpu_ms))

    def num_decoding(self) -> int:
        """Return the number of rows that the next step decodes: one for each running request with a complete prompt."""
        running = self.scheduler.running
        return sum(request.num_computed_tokens >= request.num_prompt_tokens for request in running)


def stock_config(checkpoint: Path, engine_args: dict[str, Any]) -> Any:
    """Return the configuration for stock vLLM on a checkpoint's backbone, with the same engine arguments."""
    (architecture,) = json.loads((checkpoint / "config.json").read_text())["architectures"]
    overrides = {"architectures": [architecture.removeprefix("Stretto")]}
    args = EngineArgs(model=str(checkpoint), skip_tokenizer_init=True, hf_overrides=overrides, **engine_args)
    return args.create_engine_config()


def engine_args(max_model_len: int, max_requests: int, **others: Any) -> dict[str, Any]:
    """Return vLLM arguments that fit `max_requests` CFG pairs, and all their prompts in one step."""
    return {
        "dtype": "float32",
        "max_model_len": max_model_len,
        "max_num_seqs": 2 * max_requests,
        "max_num_batched_tokens": 4096,
        "block_size": 32,
        "kv_cache_memory_bytes": 1 << 30,
        "enforce_eager": True,
    } | others


def layout_engine(folder: Path, layout: str, max_requests: int) -> tuple[Family, SteppedEngine]:
    """Write a randomly initialised checkpoint of a layout to `folder`; return the family and an engine for it."""
    name, family = LAYOUTS[layout]
    write_checkpoint(folder, family, name, HIDDEN, LAYERS)
    return family, SteppedEngine.from_args(folder, engine_args(family.max_model_len, max_requests))


def forced_prompt(
    family: Family,
    task: Task,
    seed: int,
    audio: int,
    text: int | None = None,
    scale: float | None = None,
    num_rows: int = PROMPT_ROWS,
    ids: range | None = None,
    stream: int = 0,
) -> Prompt:
    """Return a random prompt whose reply has a forced length.

    Args:
        task: Task of the prompt. Its sampling defaults apply, except for the values given here.
        audio: Number of audio frames in the reply.
        text: Number of text rows before the audio; None leaves it to the model.
        scale: Guidance scale; None for the task's default.
        ids: Ids from which the prompt's text is sampled; default: TEXT.
        stream: Input stream of the text.
    """
    ids = ids or TEXT
    sampling = task.sampling
    rows = np.full((num_rows, family.layout.num_input_streams), family.layout.pad_id, np.int32)
    rows[:, stream] = np.random.default_rng(seed).integers(ids.start, ids.stop, num_rows)
    sampling = replace(sampling, audio=replace(sampling.audio, min_rows=audio, max_rows=audio), seed=seed)
    if text is not None:
        sampling = replace(sampling, text=replace(sampling.text, min_rows=text, max_rows=text))
    if scale is not None:
        sampling = replace(sampling, guidance_scale=scale)
    return Prompt(task.name, rows, sampling)


class MethodWatch:
    """Temporary replacement of object methods and module functions, until `stop` or the end of a `with` block."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, method: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace `owner.method` with `make(owner.method)`."""
        self._replaced.append((owner, method, vars(owner).get(method)))
        setattr(owner, method, make(getattr(owner, method)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def stop(self) -> None:
        while self._replaced:
            owner, method, replaced = self._replaced.pop()
            delattr(owner, method) if replaced is None else setattr(owner, method, replaced)


class Watch(MethodWatch):
    """Processor time by part. A nested call counts only towards its own part, so the parts add up to the total."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._parts = ["rest"]
        self._since = time.thread_time()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count the time of `owner.method`, on this object only, as `name`."""

        def make(inner: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                self._turn()
                self._parts.append(name)
                try:
                    return inner(*args, **kwargs)
                finally:
                    self._turn()
                    self._parts.pop()

            return timed

        self.replace(owner, method, make)

    def _turn(self) -> None:
        now = time.thread_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def restart(self) -> None:
        self._turn()
        self.seconds.clear()

    def ms_per(self, number: int) -> dict[str, float]:
        """Return the milliseconds of each part, divided by `number`."""
        self._turn()
        return {name: round(1e3 * seconds / number, 4) for name, seconds in self.seconds.items()}


def watch(engine: SteppedEngine) -> Watch:
    """Return a watch over the parts of a decode step in Stretto's engine."""
    parts = Watch()
    runner = engine.runner
    scheduler = engine.scheduler
    state = runner.model_state
    sampler = runner.sampler
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
    if isinstance(sampler, StepSampler):  # one launch for heads, guidance and sampling
        watched.append((sampler._graphs, "run", "draw"))
    else:
        watched += [(drawing, "draw", "draw"), (guided_heads, "guide", "guidance")]
        watched += [(sampler._draw.heads, head, "heads") for head in ("text", "first", "raw_codes")]
    for owner, method, name in watched:
        parts.wrap(owner, method, name)
    parts.wrap(runner, "sample_tokens", "sample")
    parts.wrap(runner, "execute_model", "execute")
    return parts
