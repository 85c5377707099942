"""Job that compares two implementations of a step after the backbone: hand-written kernels and array code.

The kernels are launched by `StepProgram`. The array path is `SpeechSampler` on torch tensors, both as written and
through torch.compile. All run on the same inputs, each in a CUDA graph. Times count only if the rows are equal.
Families have published vocabularies, head widths and sampling, but random weights. All rows are audio rows.

`step_ms` is the time of the matrix products in the backbone and the depth transformer, plus the time of the kernels. A
real step takes longer, so this favours the kernels. `gain` is the share of `step_ms` that the kernels save. RULE gives
the verdict.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from vllm.v1.core.sched.output import NewRequestData

from benchmarks.engines import forced_prompt
from benchmarks.gpu.jobs import Setup, failure
from benchmarks.gpu.models import DRY, MODELS
from stretto.cuda_graphs import record
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.step_records import SpeechRequestData
from stretto.engine.worker import sampler as array_path
from stretto.engine.worker.batch_plan import BatchPlan, PlanArrays
from stretto.engine.worker.predictors import AudioHeads, DepthFrames, FirstHead, ParallelHeads, Readout
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.sampler import RepetitionGuard, RowDraw, SpeechSampler
from stretto.engine.worker.segment_state import SegmentState
from stretto.engine.worker.slots import LIMITS, STATE, DeviceArrays, SlotTables
from stretto.engine.worker.step_program import StepProgram, Variant
from stretto.families.base import DepthSpec, Family
from stretto.sampling import DrawParams, DrawPlan, stream_keys
from stretto.sampling import draw as draw_on_host

# Families with delays, with delays and guidance, and with a depth transformer.
CASES = {"opuslm": "1b7", "bagpiper": "8b", "qwen3_tts": "qwen3_tts"}
ROWS, DRY_ROWS = (1, 16, 64, 256), (2,)
LENGTH, AUDIO_START, STEPS = 512, 16, 3
SHARE = 0.10
RULE = f"the kernels stay if they save more than {SHARE:.0%} of a step in any case; else the array path replaces them"
NOT_MEASURED = {"part": "verdict", "verdict": "none: a dry run measures nothing", "rule": RULE}
DIFFERENT = 0.01  # permitted share of differing ids, because logarithms and sums may differ in the last bit


# ----- inputs of both paths


@torch.library.custom_op("stretto_benchmark::draw", mutates_args=())
def _draw(
    logits: torch.Tensor, ids: torch.Tensor, keys: torch.Tensor, parameters: list[torch.Tensor], is_random: bool
) -> torch.Tensor:
    temperature, top_k, top_p = parameters
    params = DrawParams(temperature, top_k, top_p)
    if logits.device.type == "cpu":
        return draw_on_host(logits, ids, keys, params, DrawPlan(is_random, 0, True))
    return import_module("stretto.engine.kernels.gpu.draw").draw_on_device(logits, ids, keys, params)


@_draw.register_fake
def _(
    logits: torch.Tensor, ids: torch.Tensor, keys: torch.Tensor, parameters: list[torch.Tensor], is_random: bool
) -> torch.Tensor:
    return ids.new_empty(logits.shape[:2])


def opaque_draw(
    logits: torch.Tensor, token_ids: torch.Tensor, keys: torch.Tensor, params: DrawParams, plan: DrawPlan
) -> torch.Tensor:
    """Sample as `kernels.draw.draw` does, in a single operator that is opaque to torch.compile."""
    return _draw(logits, token_ids, keys, [params.temperature, params.top_k, params.top_p], plan.is_random)


@contextmanager
def opaque_draws() -> Iterator[None]:
    """Make the array path sample with `opaque_draw` during the `with` block."""
    former, array_path.draw = array_path.draw, opaque_draw
    try:
        yield
    finally:
        array_path.draw = former


class FixedArrays(DeviceArrays):
    """Array backend that uploads before a graph is captured; tensors on the device pass through."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._place = device

    def upload(self, values: Any) -> Any:
        """Return `values` on the device."""
        if isinstance(values, torch.Tensor):
            return values
        source = torch.from_numpy(np.array(values))
        return torch.empty(source.shape, dtype=source.dtype, device=self._place).copy_(source)


class FixedSampler(SpeechSampler):
    """Array path for one batch, with noise keys computed on the device."""

    seeds: torch.Tensor  # int32 [M]
    drawing: torch.Tensor  # int64 [M], rows of the batch

    def _keys(self, batch: Any, plan: BatchPlan, place: int) -> Any:
        return stream_keys(self.seeds, batch.seq_lens[self.drawing], self._segments.family.layout.num_output_streams)


class NoLayers:
    """Depth transformer without layers: each code changes the state by its embedding."""

    def __init__(self, spec: DepthSpec, family: Family, width: int, random: Callable[..., torch.Tensor]):
        num_others, num_codes = family.layout.num_output_streams - 1, family.layout.codebook_size
        self.heads = random(num_others, num_codes, spec.hidden)
        self._embed, self._project = random(num_others * num_codes, spec.hidden), random(width, spec.hidden)

    def prepare(self, max_rows: int) -> None:
        """Do nothing."""

    def begin(self, hidden: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Return the states [N, H] after the first code [N]."""
        self._state = hidden @ self._project + self._embed[code]
        return self._state.tanh()

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        """Return the states [N, H] after the next code [N]."""
        self._state = self._state + self._embed[code]
        return self._state.tanh()


def readout_of(rules: SegmentRules, width: int, device: torch.device, dtype: torch.dtype) -> Readout:
    """Return heads with random weights for hidden states of size `width`."""
    torch.manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).div_(width**0.5).to(dtype)

    family = rules.family
    num_first = len(rules.audio_ids(0)) + len(rules.drawn_ends_of_audio)
    if family.depth is not None:
        depth: Any = NoLayers(family.depth, family, width, random)
        return Readout(FirstHead(random(num_first, width), rules), DepthFrames(depth, family.layout, 1))
    num_others = sum(len(rules.audio_ids(stream)) for stream in range(1, family.layout.num_output_streams))
    heads = AudioHeads(random(num_first + num_others, width), rules)
    return Readout(heads, ParallelHeads(heads))


def fill(slots: RunSlots, family: Family, scale: float) -> None:
    """Fill each slot with a reply in the middle of its audio; replies are CFG pairs if `scale` is not 1."""
    for slot in range(slots.num_slots):
        index, is_unconditional = (slot, False) if scale == 1.0 else (slot // 2, slot % 2 == 1)
        task = next(each for each in family.tasks if each.has_audio_segment)
        prompt = forced_prompt(family, task, index, LENGTH, scale=scale)
        codes, ids = prompt.rows[:, 1:], prompt.rows[:, 0].tolist()
        name = f"r{index}" + "#unconditional" * is_unconditional
        data = NewRequestData(name, ids, [], None, None, ([1],), 0, None, prefill_token_ids=ids)
        slots.fill(slot, SpeechRequestData.extending(data, prompt, codes, slots.rules.track(len(ids), ())))
        slots.note_audio({name: AUDIO_START})
    slots.tables.apply_staged(slots.arrays)
    slots.tables.state[:, STATE["audio_start"]] = AUDIO_START
    slots.tables.state[:, STATE["audio_end"]] = -1


@dataclass
class Path:
    """One implementation of a step. `launch` reads `hidden` [N, W] and `lengths` [N]; `rows` returns the results."""

    hidden: torch.Tensor
    lengths: torch.Tensor
    launch: Callable[[], None]
    rows: Callable[[], tuple[torch.Tensor, ...]]
    tables: SlotTables


def batch_of(slots: RunSlots, lengths: torch.Tensor) -> Any:
    """Return vLLM's batch with one row for each slot."""
    num_rows = slots.num_slots
    return SimpleNamespace(
        num_reqs=num_rows,
        idx_mapping_np=np.arange(num_rows),
        num_computed_tokens_np=np.full(num_rows, AUDIO_START),
        num_scheduled_tokens=np.ones(num_rows, np.int32),
        prefill_len_np=np.ones(num_rows, np.int64),
        seq_lens=lengths,
    )


@dataclass(frozen=True)
class Case:
    """N rows of a step for a family whose backbone has hidden size `width`."""

    family: Family
    width: int
    scale: float
    num_rows: int
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        assert self.scale == 1.0 or self.num_rows % 2 == 0

    @property
    def rules(self) -> SegmentRules:
        """Segment rules of the replies."""
        return SegmentRules(self.family, LENGTH)

    def _slots(self) -> RunSlots:
        tables = SlotTables(self.num_rows, self.rules, self.device)
        slots = RunSlots(tables, self.rules, FixedArrays(self.device))
        fill(slots, self.family, self.scale)
        return slots

    def _buffers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = torch.zeros(self.num_rows, LENGTH, dtype=torch.int32, device=self.device)
        hidden = torch.zeros(self.num_rows, self.width, dtype=self.dtype, device=self.device)
        return tokens, hidden, torch.zeros(self.num_rows, dtype=torch.int32, device=self.device)

    def kernels(self, readout: Readout) -> Path:
        """Return the path of the hand-written kernels."""
        slots, (tokens, hidden, _) = self._slots(), self._buffers()
        program = StepProgram(readout, self.rules, slots.tables, tokens, hidden)
        rows = slots.rows(batch_of(slots, program.lengths))
        variant = program.columns.update(rows, slots.partner, slots.is_unconditional, slots.version)
        assert variant == Variant(writes=False, speaks=True), variant
        size, width = self.num_rows, program.width

        def results() -> tuple[torch.Tensor, ...]:
            found = program.results
            return found[:size], found[size : size * (1 + width)].view(size, width), found[size * (1 + width) :][:size]

        return Path(hidden, program.lengths, lambda: program.launch(variant, size), results, slots.tables)

    def arrays(self, readout: Readout, compiler: Callable[..., Any] | None = None) -> Path:
        """Return the sampling path that uses array operations, compiled by `compiler` unless it is None."""
        slots, (tokens, hidden, lengths) = self._slots(), self._buffers()
        rules, tables, arrays = self.rules, slots.tables, slots.arrays
        segments = SegmentState(rules, arrays)
        guard = RepetitionGuard(tokens, tables, self.family, arrays)
        stock: Any = SimpleNamespace(penalties_state=None)
        sampler = FixedSampler(stock, slots, RowDraw(readout, segments, tables, arrays, guard), segments)
        batch = batch_of(slots, lengths)
        plan, step = slots.plan(slots.rows(batch))
        sampler.seeds = arrays.upload(tables.limits[plan.drawing, LIMITS["seed_key"]].astype(np.int32))
        sampler.drawing = arrays.upload(plan.drawing)
        sample = _sampling(sampler, plan, step)
        if compiler is not None:
            sample(hidden, lengths)  # fills cached properties, because torch.compile does not trace them
            sample = compiler(sample)
        found: list[torch.Tensor] = []

        def launch() -> None:
            found[:] = sample(hidden, lengths)

        return Path(hidden, lengths, launch, lambda: tuple(found), tables)


@dataclass(frozen=True)
class Lengths:
    """Fields of vLLM's batch that a captured step reads."""

    num_reqs: int
    seq_lens: torch.Tensor


def _sampling(sampler: FixedSampler, plan: BatchPlan, step: PlanArrays) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Return the array path as a function of hidden states [N, W] and lengths [N]."""

    def sample(hidden: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch: Any = Lengths(len(lengths), lengths)
        return sampler._sample(hidden, batch, plan, step, 0)

    return sample


# ----- devices and times


@dataclass(frozen=True)
class Recorded:
    """Recorded launches and their number, which is None if unknown."""

    replay: Callable[[], object]
    launches: int | None


class Device(Protocol):
    """Recorder and clock of a device."""

    def record(self, name: str, work: Callable[[], object]) -> Recorded:
        """Record the launches of `work`, which must have run before; `name` describes them."""
        ...

    def ms(self, name: str, replay: Callable[[], object]) -> float:
        """Return how many milliseconds `replay` takes on the device."""
        ...


class Gpu:
    """Device that records CUDA graphs and measures their replays with CUDA events."""

    REPLAYS = 30

    def record(self, name: str, work: Callable[[], object]) -> Recorded:
        """Capture the launches of `work` in a CUDA graph, whose memory is freed with it."""
        graph = record(work, torch.cuda.graph_pool_handle())
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            graph.replay()
            torch.cuda.synchronize()
        on_device = [each for each in profile.events() if each.device_type is torch.autograd.DeviceType.CUDA]
        return Recorded(graph.replay, len(on_device) or None)

    def ms(self, name: str, replay: Callable[[], object]) -> float:
        """Return how many milliseconds a replay takes: the mean of many replays between two events."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        replay()
        begin.record()
        for _ in range(self.REPLAYS):
            replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / self.REPLAYS


class Host:
    """Device for a dry run, with no graphs and the host's clock."""

    def record(self, name: str, work: Callable[[], object]) -> Recorded:
        """Return `work` itself."""
        return Recorded(work, None)

    def ms(self, name: str, replay: Callable[[], object]) -> float:
        """Return how many milliseconds a call takes."""
        begun = time.perf_counter()
        replay()
        return 1e3 * (time.perf_counter() - begun)


def products(layers: int, shape: Mapping[str, int], num_rows: int, case: Case) -> Callable[[], None]:
    """Return a function that multiplies rows with the weights of `layers` layers of a Qwen3 or Llama transformer."""
    hidden, inner, head = (shape[name] for name in ("hidden_size", "intermediate_size", "head_dim"))
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    sizes = [(hidden, (heads + 2 * kv_heads) * head), (heads * head, hidden), (hidden, 2 * inner), (inner, hidden)]

    def empty(*size: int) -> torch.Tensor:
        return torch.zeros(*size, dtype=case.dtype, device=case.device)

    weights = [(empty(num_rows, num_in), empty(num_out, num_in)) for _ in range(layers) for num_in, num_out in sizes]

    def multiply() -> None:
        for rows, weight in weights:
            torch.mm(rows, weight.t())

    return multiply


def products_ms(device: Device, case: Case, backbone: Mapping[str, Any]) -> float:
    """Return the time of a step's matrix products in ms, extrapolated from two layers to the whole backbone."""
    head_dim = backbone.get("head_dim") or backbone["hidden_size"] // backbone["num_attention_heads"]
    some = products(2, {**backbone, "head_dim": head_dim}, case.num_rows, case)
    some()
    name = f"backbone {case.num_rows}"
    total = device.ms(name, device.record(name, some).replay) * backbone["num_hidden_layers"] / 2
    spec = case.family.depth
    if spec is not None:
        shape = {
            "hidden_size": spec.hidden, "intermediate_size": spec.intermediate, "head_dim": spec.head_dim,
            "num_attention_heads": spec.num_heads, "num_key_value_heads": spec.num_kv_heads,
        }  # fmt: skip
        one_pass = products(spec.num_layers, shape, case.num_rows, case)
        one_pass()
        name = f"depth {case.num_rows}"
        passes = case.family.layout.num_output_streams - 1
        total += device.ms(name, device.record(name, one_pass).replay) * passes
    return total


# ----- the job


def run(setup: Setup, device: Device | None = None) -> Iterator[dict[str, Any]]:
    """Compare both paths for each family and number of rows, first without torch.compile and then with it.

    Args:
        setup: Device and output folder.
        device: Recorder and clock; None to derive them from `setup`.

    Yields:
        A line for each comparison, and a verdict after each of the two passes.
    """
    device = device or (Host() if setup.is_small else Gpu())
    lines = list[dict[str, Any]]()
    with opaque_draws(), torch.no_grad():
        for compiler in (None, _compiler(setup)):
            for name, num_rows in itertools.product(CASES, DRY_ROWS if setup.is_small else ROWS):
                about = {"family": name, "rows": num_rows, "path": "compiled" if compiler else "array"}
                try:
                    figures = compare(device, case_of(setup, name, num_rows), _backbone(setup, name), compiler)
                except torch.AcceleratorError:  # the device is unusable after this error
                    raise
                except Exception as error:
                    figures = failure(error)
                lines.append({**about, **figures})
                yield lines[-1]
            yield verdict(lines) if not isinstance(device, Host) else NOT_MEASURED


def _compiler(setup: Setup) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = 64  # each case compiles its own function
    return lambda function: torch.compile(function, fullgraph=True, backend="eager" if setup.is_small else "inductor")


def _backbone(setup: Setup, name: str) -> dict[str, Any]:
    return {**MODELS[CASES[name]].backbone, **(DRY if setup.is_small else {})}


def case_of(setup: Setup, name: str, num_rows: int) -> Case:
    """Return the case for a family. Guided rows come in pairs; a dry run has a small vocabulary."""
    model = MODELS[CASES[name]]
    family = model.read_family(setup)
    if setup.is_small:
        family = getattr(import_module("tests.small_vocabularies"), name.upper())
    num_rows += num_rows % 2 if model.scale != 1.0 else 0
    width = _backbone(setup, name)["hidden_size"]
    dtype = torch.float32 if setup.is_small else torch.bfloat16
    return Case(family, width, model.scale, num_rows, torch.device(setup.device), dtype)


def compare(
    device: Device, case: Case, backbone: Mapping[str, Any], compiler: Callable[..., Any] | None
) -> dict[str, Any]:
    """Return the number of differing ids, the launches and milliseconds of both paths, and the kernels' gain."""
    readout = readout_of(case.rules, case.width, case.device, case.dtype)
    other = "array" if compiler is None else "compiled"
    paths = {"kernels": case.kernels(readout), other: case.arrays(readout, compiler)}
    for path in paths.values():
        path.lengths.fill_(LENGTH // 2)
        for _ in range(2):  # compiles kernels and allocates workspaces
            path.launch()
    recorded = {name: device.record(f"{name} {case.num_rows}", path.launch) for name, path in paths.items()}
    different, number = differences(case, paths, recorded)
    figures: dict[str, Any] = {"different": different, "ids": number, "ok": different <= DIFFERENT * number}
    times = {name: device.ms(f"{name} {case.num_rows}", each.replay) for name, each in recorded.items()}
    step_ms = products_ms(device, case, backbone) + times["kernels"]
    figures |= {f"{name}_ms": round(ms, 4) for name, ms in times.items()}
    figures |= {f"{name}_launches": each.launches for name, each in recorded.items()}
    return figures | {"step_ms": round(step_ms, 4), "gain": round((times[other] - times["kernels"]) / step_ms, 4)}


def differences(case: Case, paths: Mapping[str, Path], recorded: Mapping[str, Recorded]) -> tuple[int, int]:
    """Replay the steps of both paths; return how many ids differ, and how many were compared.

    The ids are the sampled ones and those in the tables afterwards.
    """
    different = number = 0
    lengths = LENGTH // 2 + torch.arange(case.num_rows, device=case.device) // (1 if case.scale == 1.0 else 2) % 7
    for step in range(STEPS):
        hidden = 3 * torch.randn(case.num_rows, case.width, device=case.device)
        results = []
        for name, path in paths.items():
            path.hidden.copy_(hidden)
            path.lengths.copy_(lengths + step)
            recorded[name].replay()
            results.append([each.long() for each in path.rows()] + [path.tables.state.clone()])
        for mine, theirs in zip(*results, strict=True):
            different, number = different + int((mine != theirs).sum()), number + mine.numel()
    ours, theirs = (path.tables.codes[:, LENGTH // 2 : LENGTH // 2 + 6 + STEPS] for path in paths.values())
    return different + int((ours != theirs).sum()), number + ours.numel()


def verdict(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the verdict on all comparisons.

    In each case, the fastest array path whose ids equal those of the kernels counts. There is no verdict if a case has
    no such path.
    """
    cases = {(line["family"], line["rows"]) for line in lines}
    gains: dict[tuple[str, int], float] = {}
    for line in lines:
        if line["ok"]:
            key = line["family"], line["rows"]
            gains[key] = min(line["gain"], gains.get(key, line["gain"]))
    if not cases or gains.keys() != cases:
        missing = ", ".join(f"{family} with {rows} rows" for family, rows in sorted(cases - gains.keys()))
        return {"part": "verdict", "verdict": f"none: the paths differ or could not run for {missing}", "rule": RULE}
    (family, rows), gain = max(gains.items(), key=lambda item: item[1])
    kept = "keep the step kernels" if gain > SHARE else "replace the step kernels with the array path"
    return {"part": "verdict", "verdict": kept, "rule": RULE, "largest_gain": gain, "family": family, "rows": rows}
