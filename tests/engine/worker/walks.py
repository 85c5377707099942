"""Replies of a family that two samplers process in parallel, with random heads and without an engine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from vllm.v1.core.sched.output import NewRequestData

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.step_records import SpeechRequestData
from stretto.engine.worker.batch_plan import SolverPlan
from stretto.engine.worker.latent_draw import LatentDraw, LatentStepProgram
from stretto.engine.worker.predictors import DepthFrames, LatentReadout, ParallelHeads, Readout
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.sampler import RowDraw, SpeechSampler
from stretto.engine.worker.segment_state import SegmentState
from stretto.engine.worker.slots import Arrays, HostArrays, SlotTables, arrays_on
from stretto.engine.worker.step_graphs import Recorder, StepGraphs
from stretto.engine.worker.step_program import StepProgram, StepSampler
from stretto.family.base import Family
from stretto.records.sampling import CodeSampling
from stretto.testing.checkpoints import make_prompt

if not torch.cuda.is_available():
    from vllm.v1.worker.cpu import shm  # noqa: F401  (events of the CPU in the place of a GPU's)

LENGTH, WIDTH, CPU = 128, 12, torch.device("cpu")
NUM_SLOTS = 4
NUM_STEPS = 60
NUM_DRAWN = 4  # steps after others have followed in every slot
# Top-k and top-p of audio go round: in the interpreter the search for either is most of what a draw takes.
RANKS = ((10, 0.9), (0, 1.0), (4, 1.0), (0, 1.0), (0, 0.8))
STOCK: Any = SimpleNamespace(penalties_state=None)


class RandomHeads:
    """Fake `StreamHeads` with random weights and biases; segments sometimes end before a limit."""

    is_text_cut = False

    def __init__(self, rules: SegmentRules, device: torch.device = CPU, seed: int = 0):
        random = torch.Generator().manual_seed(seed)
        first, *others = (rules.audio_ids(stream) for stream in range(rules.family.layout.num_output_streams))
        self.text_ids = torch.arange(rules.num_text_ids, device=device)
        self.first_ids = torch.tensor([*first, *rules.drawn_ends_of_audio], device=device)
        num_columns = len(others[0]) if others else 0
        self.codes = torch.tensor(others, dtype=torch.int64, device=device).view(len(others), num_columns)
        sizes = len(self.text_ids), len(self.first_ids), self.codes.numel()
        self._weights = [torch.randn(WIDTH, size, generator=random).to(device) for size in sizes]
        self._num_ends = 0 if rules.family.layout.latents else len(rules.drawn_ends_of_audio)
        self._is_shifted = rules.family.has_stream_bias
        offsets = [torch.randn(size, generator=random).to(device) if self._is_shifted else None for size in sizes]
        self.text_offset, self.first_offset, self.code_offset = offsets

    def raw_text(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self._weights[0]

    def raw_first(self, hidden: torch.Tensor) -> torch.Tensor:
        first = hidden @ self._weights[1]
        first[:, first.shape[1] - self._num_ends :] += 9
        return first

    def raw_codes(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self._weights[2]

    def text(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._shift(self.raw_text(hidden), self.text_offset)

    def first(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._shift(self.raw_first(hidden), self.first_offset)

    def shifted(self, logits: torch.Tensor, streams: slice) -> torch.Tensor:
        return self._shift(logits, self.code_offset).view(len(logits), *self.codes[streams].shape)

    def _shift(self, logits: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        return logits if offset is None else logits + offset


class RandomDepth:
    """Fake `DepthTransformer` with random weights; each code changes the distribution of the next ones."""

    def __init__(self, family: Family, device: torch.device = CPU, seed: int = 0):
        random = torch.Generator().manual_seed(seed)
        num_streams, num_codes = family.layout.num_output_streams, family.layout.codebook_size
        self.heads = (2 * torch.randn(num_streams - 1, num_codes, WIDTH, generator=random)).to(device)
        num_rows = sum(len(ids) for ids in family.layout.audio[:-1]) + len(family.second_ids)
        self._embed = torch.randn(num_rows, WIDTH, generator=random).to(device)

    def prepare(self, max_rows: int) -> None:
        """Do nothing."""

    def begin(self, hidden: torch.Tensor, code: torch.Tensor, *second: torch.Tensor) -> torch.Tensor:
        self._state = hidden + F.embedding(code, self._embed)
        for ids in second:
            self._state += F.embedding(ids.clamp(min=0), self._embed) * (ids >= 0)[:, None]
        return self._state.tanh()

    def next(self, code: torch.Tensor, position: int) -> torch.Tensor:
        self._state = self._state * 0.9 + F.embedding(code, self._embed) * (position % 3 - 1.5)
        return self._state.tanh()


def predict_latents(
    hidden: torch.Tensor,
    noise: torch.Tensor,
    steps: torch.Tensor,
    plan: SolverPlan,
    other: torch.Tensor | None = None,
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fake `LatentPredictor` from elementwise operations, which is bit-identical in every batch."""
    x, size = noise, noise.shape[1]
    for step in range(plan.num_steps):
        target = hidden[:, :size]
        if other is not None and guidance is not None and plan.is_guided:
            scale, without = guidance[:, None], other[:, :size]
            target = torch.where(scale == 1, target, without + scale * (target - without))
        x = torch.where(step < steps[:, None], 0.5 * x + target, x)
    return x


def make_readout(rules: SegmentRules, num_slots: int, device: torch.device = CPU) -> Readout:
    """Return the readout that `SpeechModelState` makes from a model, with random weights."""
    heads: Any = RandomHeads(rules, device)
    if rules.family.layout.latents is not None:
        return LatentReadout(heads, predict_latents, WIDTH)
    if rules.family.depth is None:
        return Readout(heads, ParallelHeads(heads))
    depth = RandomDepth(rules.family, device)
    return Readout(heads, DepthFrames(depth, rules.family.layout, num_slots, rules.family.second_ids))


@dataclass
class Side:
    """A sampler and the tables that it writes. `tokens` [R, T] has stream 0 by position."""

    slots: RunSlots
    tokens: torch.Tensor
    arrays: Arrays
    sampler: Any = None


def side(rules: SegmentRules, num_slots: int, device: torch.device = CPU) -> Side:
    tables, arrays = SlotTables(num_slots, rules, device), arrays_on(device)
    tokens = torch.zeros(num_slots, LENGTH, dtype=torch.int32, device=device)
    return Side(RunSlots(tables, rules, arrays), tokens, arrays)


def reference(rules: SegmentRules, num_slots: int, readout: Readout | None = None) -> Side:
    """Return the CPU sampler; by default, with the readout of `make_readout`."""
    made, arrays = side(rules, num_slots), HostArrays()
    segments, tables = SegmentState(rules, arrays), made.slots.tables
    kind: Any = rules.family.drawing.row_draw or (RowDraw if rules.family.layout.latents is None else LatentDraw)
    draw: RowDraw = kind(readout or make_readout(rules, num_slots), segments, tables, arrays, made.tokens)
    made.sampler = SpeechSampler(STOCK, made.slots, draw, segments)
    return made


def captured(
    rules: SegmentRules,
    num_slots: int,
    recorder: Recorder | None = None,
    device: torch.device = CPU,
    readout: Readout | None = None,
) -> Side:
    """Return the GPU sampler, with its kernels in Triton's interpreter; by default, with that of `make_readout`."""
    made = side(rules, num_slots, device)
    kind: Any = rules.family.drawing.step_program
    readout = readout or make_readout(rules, num_slots, device)
    program: StepProgram
    if rules.family.layout.latents:
        program = (kind or LatentStepProgram)(readout, rules, made.slots.tables, made.tokens, num_slots, (1, 2))
    else:
        hidden = torch.zeros(num_slots, WIDTH, device=device)
        program = (kind or StepProgram)(readout, rules, made.slots.tables, made.tokens, hidden)
    graphs = StepGraphs(program.launch, num_slots, recorder, lambda variant, size: True)
    made.sampler = StepSampler(STOCK, made.slots, program, graphs)
    return made


def request(family: Family, name: str, index: int, is_unconditional: bool, **changes: object) -> SpeechRequestData:
    """Return a prompt that gets a slot, for a short reply, with the codes of its rows."""
    prompt = make_prompt(family, index, **changes)
    text, audio = prompt.sampling.text, prompt.sampling.audio
    text = replace(text, min_rows=2, max_rows=4 + index % 3)
    top_k, top_p = RANKS[index % len(RANKS)]
    is_long = not family.reads_text_by_row
    max_rows = 30 + 4 * (index % 5) if is_long else 7 + index % 4
    audio = replace(audio, min_rows=3, max_rows=max_rows, top_k=top_k, top_p=top_p)
    prompt = replace(prompt, sampling=replace(prompt.sampling, text=text, audio=audio))
    if is_unconditional and family.layout.latents:  # its context is one row, the mark that begins audio
        prompt = replace(prompt, rows=prompt.rows[-1:])
    ids = prompt.rows[:, 0].tolist()
    name += "#unconditional" * is_unconditional
    data = NewRequestData(name, ids, [], None, None, ([1],), 0, None, prefill_token_ids=ids)
    beside = SegmentRules(family, LENGTH).track(len(ids), prompt.track[: None if is_long else 9])
    if is_unconditional and beside is not None:
        beside = beside.unconditional(family)
    return SpeechRequestData.extending(data, prompt, prompt.rows[:, 1:], beside)


class Walk:
    """Replies in slots, some of them CFG pairs; ended replies are replaced. Each step runs on all `sides`."""

    def __init__(self, family: Family, sides: list[Side], seed: int):
        self.family, self.sides, self.random = family, sides, np.random.default_rng(seed)
        self.num_slots, self.num_begun = sides[0].slots.num_slots, 10 * seed
        self.lengths = np.zeros(self.num_slots, np.int64)  # rows of each slot so far; 0: the slot is free
        self.num_ended = np.zeros(self.num_slots, np.int64)  # replies, by slot
        self.names = [""] * self.num_slots

    def fill(self) -> None:
        """Put replies into the free slots, as CFG pairs if the family is guided."""
        free = self.random.permutation(np.flatnonzero(self.lengths == 0)).tolist()
        while free:
            pair = [free.pop()] + (
                [free.pop()] if free and self.family.guided_streams and self.random.random() < 0.7 else []
            )
            changes = {"ras_window": int(self.random.choice([0, 7])), "ras_max_repeats": 1}
            if self.family.depth:
                changes["depth"] = self.random.choice([None, CodeSampling(0.7, 3), CodeSampling(0.0)])
            if self.family.layout.latents is None:
                changes["min_p"] = float(self.random.choice([0.0, 0.2]))
            if self.family.drawing.penalized:
                changes["repetition_penalty"] = float(self.random.choice([1.0, 1.5]))
            frames = (0, 1) if self.family.has_all_frames else (0,)
            changes["redraw_from"] = tuple(sorted(self.random.choice(frames, self.random.integers(4)).tolist()))
            for half, slot in enumerate(pair):
                made = request(self.family, f"r{self.num_begun}", self.num_begun, half == 1, **changes)
                for each in self.sides:
                    each.slots.fill(slot, made)
                    each.slots.tables.apply_staged(each.arrays)
                    each.tokens[slot, : len(made.prefill_token_ids)] = torch.tensor(made.prefill_token_ids)
                self.lengths[slot], self.names[slot] = len(made.prefill_token_ids), made.req_id
            self.num_begun += 1

    def end(self, slot: int) -> None:
        for each in self.sides:
            each.slots.empty(self.names[slot])
        self.lengths[slot] = 0
        self.num_ended[slot] += 1

    def batch(self) -> tuple[Any, torch.Tensor]:
        """Return a step over all replies in any order, with hidden states; some prompts are incomplete."""
        slots = self.random.permutation(np.flatnonzero(self.lengths))
        lengths = self.lengths[slots]
        is_chunk = self.random.random(len(slots)) < 0.1
        for row, slot in enumerate(slots):  # both halves sample, or neither
            partner = self.sides[0].slots.partner[slot]
            is_chunk[row] |= partner >= 0 and is_chunk[slots == partner][0]
        is_chunk |= [bool(is_chunk[slots == self.sides[0].slots.partner[slot]].any()) for slot in slots]
        hidden = 2 * torch.from_numpy(self.random.standard_normal((len(slots), WIDTH)).astype(np.float32))
        made = SimpleNamespace(
            num_reqs=len(slots),
            idx_mapping_np=slots,
            num_computed_tokens_np=lengths - 1,
            num_scheduled_tokens=np.ones(len(slots), np.int32),
            prefill_len_np=np.where(is_chunk, lengths + 1, 1),
            seq_lens=torch.from_numpy(lengths.astype(np.int32)),
        )
        return made, hidden

    def step(self) -> list[tuple[torch.Tensor, ...]]:
        """Run a step on every side; return tokens [B], codes [B, S - 1], cuts [B] and which rows count, [B]."""
        self.fill()
        batch, hidden = self.batch()
        results = []
        for each in self.sides:
            output = each.sampler(hidden.clone(), batch)
            codes, _, cuts = output.logprobs_tensors[:3]
            made = output.sampled_token_ids[:, 0], codes, cuts, output.num_sampled
            results.append(tuple(tensor.cpu() for tensor in made))
            sampled = results[-1][3].numpy() > 0
            slots, drawn = batch.idx_mapping_np[sampled], results[-1][0][sampled]
            each.tokens[slots, self.lengths[slots]] = drawn.to(each.tokens.device, torch.int32)
        self._move_on(batch.idx_mapping_np[sampled], results[0][0][sampled].tolist())
        return results

    def _move_on(self, slots: np.ndarray, tokens: list[int]) -> None:
        for slot, token in zip(slots.tolist(), tokens, strict=True):
            self.lengths[slot] += 1
            if token == self.family.end_of_reply or self.lengths[slot] == LENGTH:
                self.end(slot)


def assert_samplers_agree(
    family: Family,
    is_whole: bool,
    readout: Callable[[SegmentRules], Readout] | None = None,
    prepare: Callable[[StepSampler], None] | None = None,
) -> None:
    """Assert that the interpreted GPU sampler gives the rows of the CPU sampler, and keeps the same tables.

    Args:
        is_whole: True to run `NUM_STEPS`; False to stop soon after other replies have followed in every slot.
        readout: Function that returns the readout of each sampler; None for that of `make_readout`.
        prepare: Function that changes the GPU sampler.
    """
    rules = SegmentRules(family, LENGTH)
    ours = captured(rules, NUM_SLOTS, readout=readout and readout(rules))
    theirs = reference(rules, NUM_SLOTS, readout and readout(rules))
    if prepare is not None:
        prepare(ours.sampler)
    walk = Walk(family, [ours, theirs], seed=1)
    num_left = NUM_DRAWN
    for step in range(NUM_STEPS):
        for mine, expected in zip(*walk.step(), strict=True):
            assert torch.equal(mine.long(), expected.long()), step
        for name in ("state", "codes", "seen", "texts"):
            mine, expected = (getattr(side.slots.tables, name) for side in (ours, theirs))
            assert torch.equal(mine, expected), (step, name)
        num_left -= bool(walk.num_ended.all())
        if num_left == 0 and not is_whole:
            break
    assert num_left <= 0, "replies have ended, and others begun, in every slot"
