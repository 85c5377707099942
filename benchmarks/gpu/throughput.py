"""What guidance costs: `cfg_retention` by number of requests, the step that it comes from, and the step's parts; when
guided audio begins, and how much of it a second brings."""

import itertools
import statistics
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stretto.codec.base import Codec
from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.records.prompt import Prompt

from benchmarks.gpu.first_audio import figures, first_rows, make_codec, time_burst
from benchmarks.gpu.sections import Setup
from benchmarks.gpu.shapes import FAMILY, Shape, engine_args, shape, write_config
from benchmarks.layouts import PROMPT_ROWS, TEXT

prepare_environment()

from stretto.engine.frontend.launch import vllm_config  # noqa: E402
from stretto.engine.request.params import sampling_params  # noqa: E402

from benchmarks.stepped_engine import SteppedEngine, watch  # noqa: E402

SCALE = 3.0
TASKS = {"audio": "speak", "text then audio": "tts"}


@dataclass(frozen=True)
class Run:
    """One run to its end, and the median step in which every row that there may be decodes."""

    wall_s: float
    steps: int
    step_ms: float


class Arm:
    """Replies of forced length, all started together."""

    def __init__(self, folder: Path, setup: Setup, with_compiler: bool = True):
        self._shape = shape(setup)
        args = engine_args(setup, with_compiler)
        self.engine = SteppedEngine(vllm_config(EngineConfig(write_config(folder, self._shape), args)))
        self._rules = self.engine.scheduler.table.rules
        self._random = np.random.default_rng(0)
        self._seeds = itertools.count()

    @property
    def frames(self) -> int:
        """Of a reply's audio."""
        return self._shape.frames

    def prompts(self, number: int, task: str, scale: float) -> list[Prompt]:
        """`number` prompts, none like another, so that no run finds another's blocks."""
        sampling = FAMILY.task(task).sampling
        text = replace(sampling.text, min_rows=self._shape.text_rows, max_rows=self._shape.text_rows)
        audio = replace(sampling.audio, min_rows=self._shape.frames, max_rows=self._shape.frames)
        prompts = []
        for _ in range(number):
            rows = np.zeros((PROMPT_ROWS, FAMILY.layout.num_input_streams), np.int32)
            rows[:, 0] = self._random.integers(TEXT.start, TEXT.stop, PROMPT_ROWS)
            forced = replace(sampling, text=text, audio=audio, guidance_scale=scale, seed=next(self._seeds))
            prompts.append(Prompt(task, rows, forced))
        return prompts

    def run(self, number: int, task: str, scale: float) -> Run:
        """`number` replies, guided unless `scale` is 1."""
        self.add(number, task, scale)
        num_rows = number * (1 if scale == 1.0 else 2)
        return time_run(self.engine, num_rows)

    def add(self, number: int, task: str, scale: float) -> list[str]:
        """Put `number` replies in the queue; their ids."""
        prompts = self.prompts(number, task, scale)
        params = [sampling_params(prompt, self._rules) for prompt in prompts]
        return self.engine.add([prompt.rows[:, 0].tolist() for prompt in prompts], params)


def time_run(engine: SteppedEngine, num_rows: int) -> Run:
    """Step `engine` until nothing is left, in the queue or in flight."""
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


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """A line for each kind of reply and number of requests, then for when audio begins, and for the parts of a step."""
    chosen = shape(setup)
    with tempfile.TemporaryDirectory() as folder:
        arm, start = start_arm(Path(folder), setup)
        yield {"part": "start", "shape": repr(chosen), **start}
        for kind, number in itertools.product(TASKS, chosen.requests):
            yield {"part": "cfg_retention", "reply": kind, "requests": number, **retention(arm, kind, number, chosen)}
        codec = make_codec(FAMILY, setup.device, setup.is_small)
        for number in chosen.requests:
            yield {
                "part": "first_audio",
                "requests": number,
                "guidance_scale": SCALE,
                **first_audio(arm, number, codec),
            }
        for number in (chosen.requests[-1], chosen.requests[len(chosen.requests) // 2]):
            yield {"part": "step", "requests": number, "guidance_scale": SCALE, **parts(arm, number, setup)}


def start_arm(folder: Path, setup: Setup) -> tuple[Arm, dict[str, Any]]:
    """The engine, without torch.compile where it does not start with it; how long it took, and what went wrong."""
    start, failure = time.perf_counter(), {}
    try:
        arm = Arm(folder, setup)
    except Exception as error:
        traceback.print_exc()
        failure = {"error": f"{type(error).__name__}: {error}"[:500], "ok": False}
    if failure:
        arm = Arm(folder, setup, with_compiler=False)
    return arm, {"start_s": round(time.perf_counter() - start, 1), "is_compiled": not failure, **failure}


def retention(arm: Arm, kind: str, number: int, chosen: Shape) -> dict[str, Any]:
    """Both arms in turn, round after round; equal frames, so that throughputs are as the walls."""
    arm.run(number, TASKS[kind], SCALE)
    rounds = [{scale: arm.run(number, TASKS[kind], scale) for scale in (1.0, SCALE)} for _ in range(chosen.rounds)]

    def median(figure: Callable[[dict[float, Run]], float]) -> float:
        return round(statistics.median(map(figure, rounds)), 4)

    return {
        "cfg_retention": median(lambda each: each[1.0].wall_s / each[SCALE].wall_s),
        "frames_per_s_guided": median(lambda each: number * chosen.frames / each[SCALE].wall_s),
        "frames_per_s_unguided": median(lambda each: number * chosen.frames / each[1.0].wall_s),
        "step_ms_guided": median(lambda each: each[SCALE].step_ms),
        "step_ms_unguided": median(lambda each: each[1.0].step_ms),
        "frames": chosen.frames,
        "text_rows": 0 if kind == "audio" else chosen.text_rows,
    }


def first_audio(arm: Arm, number: int, codec: Codec) -> dict[str, float]:
    """When guided replies of audio begin, and the audio of all by the second."""
    rows, streams = first_rows(FAMILY, codec), FAMILY.layout.num_output_streams
    ids = arm.add(number, TASKS["audio"], SCALE)
    burst = time_burst(arm.engine, ids, 2 * number, rows, streams)
    return figures([burst], FAMILY, codec, number, arm.frames)


def parts(arm: Arm, number: int, setup: Setup) -> dict[str, Any]:
    """Milliseconds of a guided step by part: of this thread's processor time and, on a GPU, of the device's."""
    device = DeviceWatch()
    if not setup.is_small:
        device.wrap(arm.engine.runner, "execute_model", "forward")
        device.wrap(arm.engine.runner, "sample_tokens", "sample")
    host = watch(arm.engine)
    host.restart()
    measured = arm.run(number, TASKS["audio"], SCALE)
    device_ms = device.ms_per(measured.steps)
    return {"step_ms": round(measured.step_ms, 4), "host_ms": host.ms_per(measured.steps), "device_ms": device_ms}


class DeviceWatch:
    """Time on the GPU between the beginning and the end of what a method queues there."""

    def __init__(self) -> None:
        self._spans: defaultdict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Let what `owner.method` queues count for `part`."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            span[0].record()
            result = inner(*args, **kwargs)
            span[1].record()
            self._spans[part].append(span)
            return result

        setattr(owner, method, timed)

    def ms_per(self, number: int) -> dict[str, float]:
        """Milliseconds of each part, over `number`; waits for the device."""
        if self._spans:
            torch.cuda.synchronize()
        totals = {part: sum(a.elapsed_time(b) for a, b in spans) for part, spans in self._spans.items()}
        return {part: round(total / number, 4) for part, total in totals.items()}
