"""Speed of a model: a step and its parts, the cost of guidance, the first audio; and stock vLLM on the same backbone.

`engine_efficiency` is the step time of stock vLLM, which decodes as many rows greedily with the same arguments, over
Stretto's. Only steps in which every row decodes count; a figure is the median over them.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.first_audio import figures, first_rows, make_codec, time_burst
from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.models import MODELS, PromptMaker, engine_args, write_config
from benchmarks.layouts import PROMPT_ROWS
from stretto.codecs.base import Codec
from stretto.engine.environment import prepare_environment

prepare_environment()

from vllm import SamplingParams  # noqa: E402

from benchmarks.engines import MethodWatch, SteppedEngine, stock_config, watch  # noqa: E402


@dataclass(frozen=True)
class Run:
    """One complete run, and the median step in which all rows decode."""

    wall_s: float
    steps: int
    step_ms: float


@dataclass(frozen=True)
class Load:
    """Replies of `frames` frames of audio, after `text_rows` rows of text if there is text; rounds after a warm-up."""

    frames: int
    text_rows: int
    rounds: int


def load(setup: Setup) -> Load:
    """Return the load: two seconds of audio, or as few frames as make several chunks."""
    return Load(24, 4, 1) if setup.is_small else Load(96, 48, 2)


class Arm:
    """Replies of forced length that start together."""

    def __init__(self, name: str, setup: Setup, requests: tuple[int, ...], is_compiled: bool):
        self.model, self.load = MODELS[name], load(setup)
        self.family = self.model.read_family(setup)
        self._prompts = PromptMaker(self.family)
        with tempfile.TemporaryDirectory() as folder:
            args = engine_args(setup, self.model, requests, is_compiled)
            self.engine = SteppedEngine.from_args(write_config(Path(folder), self.model, setup), args)

    def run(self, number: int, scale: float, task: str | None = None) -> Run:
        """Run `number` replies, guided unless `scale` is 1."""
        self.add(number, scale, task)
        return time_run(self.engine, number * (1 if scale == 1.0 else 2))

    def add(self, number: int, scale: float, task: str | None = None) -> list[str]:
        """Queue `number` replies; return their ids."""
        forced = self.load.frames, self.load.text_rows
        prompts = self._prompts.make(number, task or self.model.task, scale, *forced)
        return self.engine.add_prompts(prompts)


def time_run(engine: SteppedEngine, num_rows: int) -> Run:
    """Step `engine` until no request is queued or in flight."""
    core, scheduler = engine.core, engine.scheduler
    step_ms, steps, start = [], 0, time.perf_counter()
    while scheduler.has_requests() or core.batch_queue:
        before, since = engine.num_decoding(), time.perf_counter()
        engine.step()
        steps += 1
        if before == engine.num_decoding() == num_rows:
            step_ms.append(1e3 * (time.perf_counter() - since))
    wall_s = time.perf_counter() - start
    return Run(wall_s, steps, statistics.median(step_ms))


def run_ours(setup: Setup, model: str, requests: tuple[int, ...], is_compiled: bool = True) -> Iterator[dict[str, Any]]:
    """Yield a line for the start, for the step at the first two numbers of requests, and more if compiled.

    The others are for the cost of guidance and for the first audio, at each number of requests.
    """
    requests, begun = requests[: 2 if setup.is_small else None], time.perf_counter()
    requests = (1, 2)[: len(requests)] if setup.is_small else requests
    about = {"model": model, "is_compiled": is_compiled}
    arm = Arm(model, setup, requests, is_compiled)
    scale = arm.model.scale
    yield {**about, "part": "start", "start_s": round(time.perf_counter() - begun, 1)}
    for number in requests[:2]:
        yield {**about, "part": "step", "requests": number, "guidance_scale": scale, **parts(arm, number, setup)}
    if not is_compiled:
        return
    if scale != 1.0:
        for number in requests:
            yield {**about, "part": "cfg_retention", "requests": number, **retention(arm, number)}
    codec = make_codec(arm.family, setup.device, setup.is_small)
    for number in requests:
        yield {**about, "part": "first_audio", "requests": number, **first_audio(arm, number, codec)}
    if arm.model.written is not None:
        for number in requests[:2]:
            yield {**about, "part": "text", "requests": number, **retention(arm, number, arm.model.written)}


def parts(arm: Arm, number: int, setup: Setup) -> dict[str, Any]:
    """Return a step and its milliseconds by part: processor time of this thread and, on a GPU, device time.

    The step itself is measured without a watch.
    """
    scale = arm.model.scale
    arm.run(number, scale)
    step_ms = statistics.median(arm.run(number, scale).step_ms for _ in range(arm.load.rounds))
    with watch(arm.engine) as host, DeviceWatch() as device:
        if not setup.is_small:
            device.wrap(arm.engine.runner, "execute_model", "forward")
            device.wrap(arm.engine.runner, "sample_tokens", "sample")
        host.restart()
        watched = arm.run(number, scale)
        found = {"host_ms": host.ms_per(watched.steps), "device_ms": device.ms_per(watched.steps)}
    return {"step_ms": round(step_ms, 4), "rows": number * arm.model.rows_per_request, **found}


def retention(arm: Arm, number: int, task: str | None = None) -> dict[str, Any]:
    """Run guided and unguided replies alternately; frame counts are equal, so wall times give the ratio."""
    scale, frames = arm.model.scale, arm.load.frames
    arm.run(number, scale, task)
    rounds = [{each: arm.run(number, each, task) for each in (1.0, scale)} for _ in range(arm.load.rounds)]

    def median(figure: Callable[[dict[float, Run]], float]) -> float:
        return round(statistics.median(map(figure, rounds)), 4)

    return {
        "cfg_retention": median(lambda each: each[1.0].wall_s / each[scale].wall_s),
        "frames_per_s_guided": median(lambda each: number * frames / each[scale].wall_s),
        "frames_per_s_unguided": median(lambda each: number * frames / each[1.0].wall_s),
        "step_ms_guided": median(lambda each: each[scale].step_ms),
        "step_ms_unguided": median(lambda each: each[1.0].step_ms),
        "frames": frames,
        "text_rows": 0 if task is None else arm.load.text_rows,
    }


def first_audio(arm: Arm, number: int, codec: Codec) -> dict[str, float]:
    """Return the time to the first audio, and the audio of all replies per second."""
    rows, streams = first_rows(arm.family, codec), arm.family.layout.num_output_streams
    bursts = []
    for _ in range(arm.load.rounds):
        ids = arm.add(number, arm.model.scale)
        bursts.append(time_burst(arm.engine, ids, number * arm.model.rows_per_request, rows, streams))
    return figures(bursts, arm.family, codec, number, arm.load.frames)


def run_stock(setup: Setup, model: str, requests: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Yield a line for each number of requests: stock vLLM's step, and its ratio to Stretto's if that was measured."""
    chosen, forced = MODELS[model], load(setup)
    requests = (1, 2)[: len(requests)] if setup.is_small else requests
    seeds, ours = itertools.count(1000), our_steps(setup, model)
    with tempfile.TemporaryDirectory() as folder:
        engine = stock_engine(Path(folder), setup, model, requests)
        params = SamplingParams(temperature=0.0, max_tokens=forced.frames, ignore_eos=True, detokenize=False)
        for number in requests:
            num_rows, steps = number * chosen.rows_per_request, []
            for _ in range(forced.rounds + 1):
                engine.add([[next(seeds)] * PROMPT_ROWS for _ in range(num_rows)], [params] * num_rows)
                steps.append(time_run(engine, num_rows).step_ms)
            stock_ms = statistics.median(steps[1:])
            figures = {"model": model, "requests": number, "rows": num_rows, "stock_step_ms": round(stock_ms, 4)}
            if number in ours:
                figures |= {"step_ms": ours[number], "engine_efficiency": round(stock_ms / ours[number], 4)}
            yield figures


def stock_engine(folder: Path, setup: Setup, model: str, requests: tuple[int, ...]) -> SteppedEngine:
    """Return stock vLLM on a model's backbone, with the same arguments."""
    args = engine_args(setup, MODELS[model], requests)
    wants_async = args.pop("async_scheduling")
    checkpoint = write_config(folder, MODELS[model], setup)
    built = stock_config(checkpoint, {**args, "async_scheduling": wants_async})
    built.scheduler_config.async_scheduling = wants_async and not setup.is_small
    return SteppedEngine(built)


def our_steps(setup: Setup, model: str) -> dict[int, float]:
    """Return the milliseconds of Stretto's step by number of requests, from the results of an earlier job."""
    lines = [json.loads(line) for line in setup.results.read_text().splitlines()] if setup.results.exists() else []
    ours = [line for line in lines if line.get("model") == model and line.get("is_compiled")]
    guided = {line["requests"]: line["step_ms_guided"] for line in ours if line["part"] == "cfg_retention"}
    return guided | {line["requests"]: line["step_ms"] for line in ours if line["part"] == "step"}


class DeviceWatch(MethodWatch):
    """Time on the GPU from the start to the end of the work that a method queues."""

    def __init__(self) -> None:
        super().__init__()
        self._spans: defaultdict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Count the device time of `owner.method` as `part`."""

        def make(inner: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                span[0].record()
                result = inner(*args, **kwargs)
                span[1].record()
                self._spans[part].append(span)
                return result

            return timed

        self.replace(owner, method, make)

    def ms_per(self, number: int) -> dict[str, float]:
        """Wait for the device and return the milliseconds of each part, divided by `number`."""
        if self._spans:
            torch.cuda.synchronize()
        totals = {part: sum(a.elapsed_time(b) for a, b in spans) for part, spans in self._spans.items()}
        return {part: round(total / number, 4) for part, total in totals.items()}
