"""Jobs that measure a model's speed: a step and its parts, guidance, first audio, and stock vLLM's step.

`engine_efficiency` is the step time of stock vLLM divided by the step time of Stretto. Stock vLLM decodes the same
number of rows greedily, on the same backbone and with the same arguments. Only steps in which every row decodes count,
and a figure is the median over them.

`ttfp_floor` is prefill + (longest delay + first chunk + right context of the codec) x median step + one decode of the
first chunk. `ttfp` is the time from queueing a reply to the last row of its first chunk, measured at the engine, plus
the same decode. `prefill` lasts until every reply has its first row. Replies start together.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines import SteppedEngine
from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.launches import launcher_of, time_batch
from benchmarks.gpu.models import (
    GRAPHS,
    MODELS,
    PIECES,
    PLAIN,
    PROMPTS,
    WHOLE,
    PromptMaker,
    engine_config,
    write_config,
)
from benchmarks.layouts import PROMPT_ROWS
from lab.releases import random_codecs as random_weights
from lab.releases import random_espnet
from lab.releases.random_qwen3_codec import write_qwen3_codec
from stretto.codecs.base import Codec, load_codec
from stretto.config import DecoderConfig
from stretto.engine.environment import prepare_environment
from stretto.family.base import Family

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

from benchmarks.engines import MethodWatch, stock_config, watch  # noqa: E402
from stretto.engine.host import memory_share, vllm_config  # noqa: E402


@dataclass(frozen=True)
class Run:
    """Time and steps of a complete run, and its median step in which all rows decode."""

    wall_s: float
    steps: int
    step_ms: float


@dataclass(frozen=True)
class Load:
    """Size of a run: audio frames and text rows per reply, and the number of rounds after a warm-up."""

    frames: int
    text_rows: int
    rounds: int


def load(setup: Setup) -> Load:
    """Return a load of two seconds of audio, or for a dry run the fewest frames that fill several chunks."""
    return Load(24, 4, 1) if setup.is_small else Load(96, 48, 2)


class Arm:
    """Engine for replies of forced length that start together."""

    def __init__(self, name: str, setup: Setup, requests: tuple[int, ...], graphs: Mapping[str, Any]):
        self.model = MODELS[name]
        self.load = load(setup)
        self.device = setup.device
        self.family = self.model.read_family(setup)
        self._prompts = PromptMaker(self.family)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = write_config(Path(folder), self.model, setup)
            config = engine_config(checkpoint, setup, self.model, requests, graphs)
            self.engine = SteppedEngine(vllm_config(config))

    def run(self, number: int, scale: float, task: str | None = None) -> Run:
        """Run `number` replies, guided unless `scale` is 1."""
        self.add(number, scale, task)
        return time_run(self.engine, number * (1 if scale == 1.0 else 2))

    def add(self, number: int, scale: float, task: str | None = None, num_rows: int = PROMPT_ROWS) -> list[str]:
        """Queue `number` replies with prompts of `num_rows` rows; return their ids."""
        forced = self.load.frames, self.load.text_rows
        prompts = self._prompts.make(number, task or self.model.task, scale, *forced, num_rows)
        return self.engine.add_prompts(prompts)


def time_run(engine: SteppedEngine, num_rows: int) -> Run:
    """Step `engine` until no request is queued or in flight."""
    core = engine.core
    scheduler = engine.scheduler
    step_ms = []
    steps = 0
    start = time.perf_counter()
    while scheduler.has_requests() or core.batch_queue:
        before = engine.num_decoding()
        since = time.perf_counter()
        engine.step()
        steps += 1
        if before == engine.num_decoding() == num_rows:
            step_ms.append(1e3 * (time.perf_counter() - since))
    wall_s = time.perf_counter() - start
    return Run(wall_s, steps, statistics.median(step_ms))


def run_ours(setup: Setup, model: str, requests: tuple[int, ...], mode: str = PIECES) -> Iterator[dict[str, Any]]:
    """Yield result lines for the start-up time, for a step at the first two numbers of requests, and for prompts.

    Unless `mode` is PLAIN, further lines have the cost of guidance and the first audio at each number of requests.
    """
    requests = requests[: 2 if setup.is_small else None]
    begun = time.perf_counter()
    requests = (1, 2)[: len(requests)] if setup.is_small else requests
    about = {"model": model, "mode": mode}
    arm = Arm(model, setup, requests, GRAPHS[mode])
    scale = arm.model.scale
    yield {**about, "part": "start", "start_s": round(time.perf_counter() - begun, 1)}
    for number in requests[:2]:
        yield {**about, "part": "step", "requests": number, "guidance_scale": scale, **parts(arm, number, setup)}
    if mode == PLAIN:
        return
    for num_rows in PROMPTS:
        yield {**about, "part": "prompt", "prompt_rows": num_rows, **prompt(arm, num_rows)}
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
    """Return the milliseconds of a step, then those of its parts on this thread and the device, from a separate run."""
    scale = arm.model.scale
    arm.run(number, scale)
    step_ms = statistics.median(arm.run(number, scale).step_ms for _ in range(arm.load.rounds))
    with watch(arm.engine) as host, DeviceWatch() as device:
        if not setup.is_small:
            device.wrap(arm.engine.runner, "execute_model", "forward")
            device.wrap(arm.engine.runner, "sample_tokens", "sample")
        host.restart()
        watched = arm.run(number, scale)
        watched_ms = {"host_ms": host.ms_per(watched.steps), "device_ms": device.ms_per(watched.steps)}
    return {"step_ms": round(step_ms, 4), "rows": number * arm.model.rows_per_request, **watched_ms}


def prompt(arm: Arm, num_rows: int) -> dict[str, float]:
    """Return the time from a prompt of `num_rows` rows to its first row, if nothing else is in progress."""
    times = list[float]()
    for _ in range(1 + arm.load.rounds):
        ids = arm.add(1, 1.0, num_rows=num_rows)
        times.append(time_burst(arm.engine, ids, 1, 1).prefill_s)
    return {"prefill_ms": round(1e3 * statistics.median(times[1:]), 4)}


def retention(arm: Arm, number: int, task: str | None = None) -> dict[str, Any]:
    """Alternate guided and unguided replies with equal frame counts; return the ratio of their wall times."""
    scale = arm.model.scale
    frames = arm.load.frames
    arm.run(number, scale, task)
    rounds = [{guidance: arm.run(number, guidance, task) for guidance in (1.0, scale)} for _ in range(arm.load.rounds)]

    def median(figure: Callable[[dict[float, Run]], float]) -> float:
        return round(statistics.median(map(figure, rounds)), 4)

    return {
        "cfg_retention": median(lambda runs: runs[1.0].wall_s / runs[scale].wall_s),
        "frames_per_s_guided": median(lambda runs: number * frames / runs[scale].wall_s),
        "frames_per_s_unguided": median(lambda runs: number * frames / runs[1.0].wall_s),
        "step_ms_guided": median(lambda runs: runs[scale].step_ms),
        "step_ms_unguided": median(lambda runs: runs[1.0].step_ms),
        "frames": frames,
        "text_rows": 0 if task is None else arm.load.text_rows,
    }


def first_audio(arm: Arm, number: int, codec: Codec) -> dict[str, float]:
    """Return the time to the first audio, and the seconds of audio that all replies generate per second."""
    rows = first_rows(arm.family, codec)
    bursts = []
    for _ in range(arm.load.rounds):
        ids = arm.add(number, arm.model.scale)
        bursts.append(time_burst(arm.engine, ids, number * arm.model.rows_per_request, rows))
    return figures(bursts, arm, codec, number)


def run_stock(setup: Setup, model: str, requests: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Yield stock vLLM's step time for each number of requests, with the ratio to Stretto's if it was measured."""
    chosen = MODELS[model]
    forced = load(setup)
    requests = (1, 2)[: len(requests)] if setup.is_small else requests
    seeds = itertools.count(1000)
    ours = our_steps(setup, model)
    with tempfile.TemporaryDirectory() as folder:
        engine = stock_engine(Path(folder), setup, model, requests)
        params = SamplingParams(temperature=0.0, max_tokens=forced.frames, ignore_eos=True, detokenize=False)
        for number in requests:
            num_rows = number * chosen.rows_per_request
            steps = []
            for _ in range(forced.rounds + 1):
                engine.add([[next(seeds)] * PROMPT_ROWS for _ in range(num_rows)], [params] * num_rows)
                steps.append(time_run(engine, num_rows).step_ms)
            stock_ms = statistics.median(steps[1:])
            figures = {"model": model, "requests": number, "rows": num_rows, "stock_step_ms": round(stock_ms, 4)}
            if number in ours:
                figures |= {"step_ms": ours[number], "engine_efficiency": round(stock_ms / ours[number], 4)}
            yield figures


def stock_engine(folder: Path, setup: Setup, model: str, requests: tuple[int, ...]) -> SteppedEngine:
    """Return a stock vLLM engine for a model's backbone, with the same arguments."""
    checkpoint = write_config(folder, MODELS[model], setup)
    config = engine_config(checkpoint, setup, MODELS[model], requests)
    share = {} if setup.is_small else memory_share(config, current_platform.get_device_total_memory)
    args = config.engine_args | share
    wants_async = config.engine_args["async_scheduling"]
    built = stock_config(checkpoint, args)
    built.scheduler_config.async_scheduling = wants_async and not setup.is_small
    return SteppedEngine(built)


def our_steps(setup: Setup, model: str) -> dict[int, float]:
    """Return Stretto's step time in milliseconds by number of requests, from the results of an earlier job.

    Steps without prompts have the same graphs in all modes but `PLAIN`.
    """
    lines = [json.loads(line) for line in setup.results.read_text().splitlines()] if setup.results.exists() else []
    ours = [line for line in lines if line.get("model") == model and line.get("mode") in (PIECES, WHOLE)]
    guided = {line["requests"]: line["step_ms_guided"] for line in ours if line["part"] == "cfg_retention"}
    return guided | {line["requests"]: line["step_ms"] for line in ours if line["part"] == "step"}


class DeviceWatch(MethodWatch):
    """Watch that measures the GPU time from the start to the end of the work that a method queues."""

    def __init__(self) -> None:
        super().__init__()
        self._spans: defaultdict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = defaultdict(list)

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count the device time of `owner.method` as `name`."""

        def make(inner: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                span[0].record()
                result = inner(*args, **kwargs)
                span[1].record()
                self._spans[name].append(span)
                return result

            return timed

        self.replace(owner, method, make)

    def ms_per(self, number: int) -> dict[str, float]:
        """Wait for the device and return the milliseconds of each part, divided by `number`."""
        if self._spans:
            torch.cuda.synchronize()
        totals = {name: sum(a.elapsed_time(b) for a, b in spans) for name, spans in self._spans.items()}
        return {name: round(total / number, 4) for name, total in totals.items()}


@dataclass(frozen=True)
class Burst:
    """Times in seconds for replies that start together. `ttfp_s` is the median over the replies."""

    prefill_s: float
    ttfp_s: float
    step_s: float
    wall_s: float


def first_rows(family: Family, codec: Codec) -> int:
    """Return the number of rows that an audio reply needs before its first chunk can be decoded."""
    return max(family.layout.delays) + family.first_chunk_frames + codec.spec.right_frames


def audio_s(family: Family, num_rows: int) -> float:
    """Return the seconds of audio in a reply of `num_rows` audio rows."""
    incomplete = family.tail.num_closing_rows(family.layout.max_delay)
    return (num_rows - incomplete) / family.frame_rate


def time_burst(engine: SteppedEngine, request_ids: list[str], num_rows: int, first: int) -> Burst:
    """Step until all replies end; return their times. Full steps have `num_rows` rows, a first chunk needs `first`."""
    core = engine.core
    scheduler = engine.scheduler
    rows = dict.fromkeys(request_ids, 0.0)
    reached = dict[str, float]()
    prefill_s = 0.0
    step_s = []
    begun = time.perf_counter()
    while scheduler.has_requests() or core.batch_queue:
        before = engine.num_decoding()
        since = time.perf_counter()
        outputs = engine.step() or {}
        now = time.perf_counter()
        if before == engine.num_decoding() == num_rows:
            step_s.append(now - since)
        for output in [output for of_client in outputs.values() for output in of_client.outputs]:
            if output.request_id in rows:
                rows[output.request_id] += len(output.new_token_ids) / (1 + scheduler.table.rules.num_row_words)
                if rows[output.request_id] >= first:
                    reached.setdefault(output.request_id, now - begun)
        if not prefill_s and all(rows.values()):
            prefill_s = now - begun
    wall_s = time.perf_counter() - begun
    assert len(reached) == len(request_ids), f"{len(reached)} of {len(request_ids)} replies had {first} rows"
    return Burst(prefill_s, statistics.median(reached.values()), statistics.median(step_s), wall_s)


def figures(bursts: list[Burst], arm: Arm, codec: Codec, number: int) -> dict[str, float]:
    """Return the medians over bursts, each of `number` replies."""

    def median(figure: Callable[[Burst], float]) -> float:
        return statistics.median(map(figure, bursts))

    family = arm.family
    rows = first_rows(family, codec)
    decode_s = time_decode(codec, arm.device, number, family.first_chunk_frames)
    ttfp_s = median(lambda burst: burst.ttfp_s) + decode_s
    floor_s = median(lambda burst: burst.prefill_s + rows * burst.step_s) + decode_s
    return {
        "step_ms": round(1e3 * median(lambda burst: burst.step_s), 4),
        "prefill_ms": round(1e3 * median(lambda burst: burst.prefill_s), 3),
        "decode_ms": round(1e3 * decode_s, 3),
        "first_rows": rows,
        "ttfp_s": round(ttfp_s, 5),
        "ttfp_floor_s": round(floor_s, 5),
        "ttfp_over_floor": round(ttfp_s / floor_s, 4),
        "audio_s_per_s": round(number * audio_s(family, arm.load.frames) / median(lambda burst: burst.wall_s), 2),
    }


def make_codec(family: Family, device: str, is_small: bool) -> Codec:
    """Return the family's codec with random weights.

    X-codec and the Qwen3-TTS codec have their published width. The ESPnet codec is narrow, because only the release
    itself shows its width.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "codec"
        if family.codec == "xcodec":
            random_weights.write_checkpoint("xcodec", directory, is_narrow=is_small)
        elif family.codec == "qwen3_12hz":
            write_qwen3_codec(directory, "small" if is_small else "wide")
        else:
            random_espnet.write_codec(directory, family.layout.codebook_size)
        return load_codec(family.codec, Path(folder), device, family.layout.num_codebooks)


def time_decode(codec: Codec, device: str, number: int, num_frames: int) -> float:
    """Return the seconds that a decoder takes for the first chunks of `number` utterances in one batch."""
    config = DecoderConfig(device=device, max_batch=number)
    with launcher_of(codec, config) as launcher:
        return time_batch(launcher, codec, number, num_frames).wall_s
