"""Conformance test of a model family: the engine generates the same ids as the slow reference.

The vLLM engine runs step by step in this process, without a server or a second process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.engine.frame_codes import FrameCodes
from stretto.engine.host import vllm_config
from stretto.engine.reply_rules import SegmentRules
from stretto.entry_points import CODECS, find
from stretto.family.base import Family
from stretto.family.plugin import FamilyPlugin
from stretto.family.plugin import plugin as registered
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompts, write_checkpoint
from stretto.testing.reference import ReferenceModel, Row

prepare_environment()

from vllm import SamplingParams  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402
from vllm.v1.core.sched.output import SchedulerOutput  # noqa: E402
from vllm.v1.engine import EngineCoreOutputs  # noqa: E402
from vllm.v1.engine.core import EngineCore  # noqa: E402
from vllm.v1.executor import Executor  # noqa: E402
from vllm.v1.request import Request  # noqa: E402

from stretto.engine.adapters import lora_requests  # noqa: E402
from stretto.engine.protocol import GUIDANCE_ON, NO_CHANGE, Trailer, read_rows, sampling_fields  # noqa: E402


def sampling_params(prompt: Prompt, rules: SegmentRules, host: str = "") -> SamplingParams:
    """Return the parameters of a request in the form that the engine reads."""
    fields = sampling_fields(prompt, rules, host)
    return SamplingParams(**fields | {"output_kind": RequestOutputKind(fields["output_kind"])})


MAX_STEPS = 20_000  # of a run; a reply of 20 minutes takes 15,000
DEFAULTS = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 256,
    "block_size": 32,
    "kv_cache_memory_bytes": 32 << 20,
}


@dataclass
class Answer:
    """Reply to one prompt, with its statistics and vLLM's finish reason once it has ended.

    Attributes:
        rows: Ids of the output streams in every row.
        changes: (index, is_guided) for every row at which guidance is switched on or off.
        states: State of the reply after every row (`SegmentRules.sent_state`).
    """

    rows: list[list[int]] = field(default_factory=list)
    trailer: Trailer | None = None
    finish_reason: str | None = None
    changes: list[tuple[int, bool]] = field(default_factory=list)
    states: list[list[int]] = field(default_factory=list)


class Engine:
    """vLLM engine core with its scheduler and worker."""

    def __init__(
        self,
        folder: Path,
        kv_share: Mapping[str, float] | None = None,
        adapters: Mapping[str, Path] | None = None,
        live_reserve: bool = True,
        int8: bool = False,
        **engine_args: object,
    ):
        arguments = {**DEFAULTS, **engine_args}
        shares = dict(kv_share or {})
        folders = adapters or {}
        config = vllm_config(
            EngineConfig(folder, arguments, shares, adapters=folders, live_reserve=live_reserve, int8=int8)
        )
        self.core = EngineCore(config, Executor.get_class(config), log_stats=False)
        self.scheduler = cast(Any, self.core.scheduler)
        self.rules = self.scheduler.table.rules
        self.num_free_blocks = self.free_blocks()
        self.num_steps = 0
        self.moved = False
        self.after_schedule: Callable[[SchedulerOutput], None] | None = None
        self._schedule = self.scheduler.schedule
        self.scheduler.schedule = self._watch

    def free_blocks(self) -> int:
        """Return the number of free KV blocks."""
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    @property
    def model_state(self) -> Any:
        """Per-request state in the worker."""
        return self.core.model_executor.driver_worker.worker.model_runner.model_state

    def add(self, request_id: str, prompt: Prompt, host: str = "") -> None:
        """Queue a prompt of a client host."""
        params = sampling_params(prompt, self.rules, host)
        tokens = prompt.rows[:, 0].tolist()
        hasher = self.core.request_block_hasher
        adapters = {
            adapter_request.lora_name: adapter_request for adapter_request in lora_requests(self.core.vllm_config)
        }
        adapter = adapters[prompt.adapter] if prompt.adapter else None
        request = Request(request_id, tokens, params, None, lora_request=adapter, block_hasher=hasher)
        self.core.add_request(request)

    def run(
        self,
        prompts: Mapping[str, Prompt],
        arrivals: Mapping[str, int] | None = None,
        aborts: Mapping[str, int] | None = None,
        after_step: Callable[["Engine"], None] | None = None,
    ) -> dict[str, Answer]:
        """Generate replies and return them by request id.

        Args:
            arrivals: Map from request id to the step before which its prompt is queued; step 0 for missing ids.
            aborts: Map from request id to the step before which the request is aborted.
        """
        arrivals = dict(arrivals or {})
        aborts = dict(aborts or {})
        answers = {request_id: Answer() for request_id in prompts}
        step = 0
        pending = dict(prompts)
        while pending or self.is_busy():
            for request_id in [i for i in pending if arrivals.get(i, 0) <= step]:
                self.add(request_id, pending.pop(request_id))
            self.core.abort_requests([i for i, at in aborts.items() if at == step])
            if self.is_busy():
                self._step(answers)
            if after_step:
                after_step(self)
            step += 1
            assert step < MAX_STEPS, "the engine does not finish"
        return answers

    def _watch(self, throttle_prefills: bool = False) -> SchedulerOutput:
        output = self._schedule(throttle_prefills)
        if self.after_schedule:
            self.after_schedule(output)
        return output

    def is_busy(self) -> bool:
        """Return True if there are unfinished requests or steps."""
        return bool(self.scheduler.has_requests() or self.core.batch_queue)

    def step(self) -> dict[int, EngineCoreOutputs]:
        """Run one step of the engine core; set the attribute `moved` to True if anything was computed."""
        outputs, self.moved = self.core.step_fn()
        self.core.post_step(self.moved)
        self.num_steps += 1
        return outputs or {}

    def _step(self, answers: dict[str, Answer]) -> None:
        width = self.rules.num_row_words
        number = self.rules.family.num_row_words
        for core_outputs in self.step().values():
            for output in core_outputs.outputs:
                answer = answers[output.request_id]
                ids = output.new_token_ids
                if output.finish_reason is not None:
                    answer.finish_reason = str(output.finish_reason)
                    answer.trailer = Trailer(*ids[-len(Trailer._fields) :])
                    ids = ids[: -len(Trailer._fields)]
                for mark, *row in read_rows(ids, width).tolist():
                    if mark != NO_CHANGE:
                        answer.changes.append((len(answer.rows), mark == GUIDANCE_ON))
                    answer.rows.append(row[:number])
                    answer.states.append(row[number:])

    def is_clean(self) -> bool:
        """Return True if the scheduler and the worker hold no state of finished requests."""
        scheduler = self.scheduler
        slots = self.model_state.slots
        self.core.step_fn() if scheduler.has_requests() else None
        return (
            self.free_blocks() == self.num_free_blocks
            and not scheduler.requests
            and len(scheduler.table) == 0
            and not scheduler.running
            and not scheduler.waiting
            and not slots.slot_of
            and bool(np.all(slots.partner == -1))
        )

    def shutdown(self) -> None:
        self.core.shutdown()


# Fewer rows per step than most prompts have, and only four slots.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 48, "max_num_seqs": 4, "max_model_len": 160}
NUM_BLOCKS = 7  # KV blocks: slightly more than one reply needs; two more for a CFG pair
MIN_MARGIN = 1e-5  # minimum margin between the reference's best and second-best candidates, in logits
NUM_ALONE = 3  # number of prompts that are also run unbatched
NUM_KEPT = 3  # frames before the first one that is drawn anew


def assert_family_conforms(
    plugin: FamilyPlugin,
    folder: Path,
    vocabulary: Mapping[str, Any] | None = None,
    write: Callable[..., Path] = write_checkpoint,
    num_prompts: int = 10,
    **shape: Any,
) -> None:
    """Assert that a family is registered, and that the engine generates the same replies as the slow reference.

    The first NUM_ALONE replies are generated one at a time. All replies are then generated in one batch, by an engine
    with so few KV blocks that some are preempted. All ids in all rows must equal those of the reference, so unbatched,
    batched and preempted replies are equal.

    The reference cannot generate latents. If a family's frames are latents, batched replies must be bit-identical to
    unbatched replies. A separate test of the family must compare its latents with another implementation.

    Args:
        vocabulary: `speech_vocabulary` of a small model; None for the published vocabulary.
        write: Function that writes a random checkpoint and takes the same arguments as `write_checkpoint`.
        **shape: Additional arguments of `write`, such as `hidden`, `layers`, `backbone` and `seed`.
    """
    assert registered(plugin.name) is plugin, (
        f"{plugin.name}: expected this plug-in to be registered under its name in stretto.families"
    )
    family = plugin.build(vocabulary)
    assert family.name == plugin.name, f"{plugin.name}: build returns a family called {family.name}"
    assert find(CODECS, family.codec) is not None, f"{plugin.name}: no installed codec is called {family.codec}"
    write(folder, family, plugin.name, vocabulary=vocabulary, **shape)
    prompts = make_prompts(family, num_prompts)
    are_latents = family.layout.latents is not None
    expected = {} if are_latents else expected_rows(folder, family, prompts)
    pair = family.unconditional.pair
    has_long_pairs = bool(family.guided_streams) and (pair is None or not pair("").follows_rows)
    engine = Engine(folder, **TIGHT, num_gpu_blocks_override=NUM_BLOCKS + 2 * has_long_pairs)
    try:
        if are_latents:
            expected = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        for name in [] if are_latents else list(prompts)[:NUM_ALONE]:
            _compare(f"{name} alone", engine.run({name: prompts[name]})[name].rows, expected[name])
        answers = engine.run(prompts)
        for name, answer in answers.items():
            _compare(f"{name} in a batch", answer.rows, expected[name])
        _check_redraws(engine, family, prompts, {name: answer.rows for name, answer in answers.items()})
        assert num_preemptions(answers) > 0, "no reply was preempted: expected more or longer prompts"
        assert engine.is_clean(), "the engine keeps state of requests that have ended"
    finally:
        engine.shutdown()


def _check_redraws(
    engine: Engine, family: Family, prompts: Mapping[str, Prompt], rows_by_name: Mapping[str, list[Row]]
) -> None:
    """Check that a reply whose noise changes at a frame has the same frames before it."""
    for name, prompt in prompts.items():
        temperature = prompt.sampling.audio.temperature
        if not (family.task(prompt.task).has_audio_segment and family.has_all_frames and temperature):
            continue
        changed = replace(prompt, sampling=replace(prompt.sampling, redraw_from=(NUM_KEPT,)))
        rows = engine.run({name: changed})[name].rows
        kept, expected = (_frames(family, reply) for reply in (rows, rows_by_name[name]))
        if len(expected) > NUM_KEPT:
            assert rows != rows_by_name[name], f"{name}: nothing is drawn anew from frame {NUM_KEPT} on"
            assert np.array_equal(kept[:NUM_KEPT], expected[:NUM_KEPT]), (
                f"{name}: frames before {NUM_KEPT} have changed"
            )
            return


def _frames(family: Family, rows: list[Row]) -> np.ndarray:
    """Return the first frames of a reply with audio, [n, K]."""
    layout = family.layout
    first = layout.audio[0]
    frames = FrameCodes(family, layout.codebook_streams or range(len(rows[0])))
    start = next((index for index, row in enumerate(rows) if row[0] in first), len(rows))
    frames.push(np.array(rows[start:]).reshape(-1, len(rows[0])))
    popped = frames.pop_frames(min(NUM_KEPT + 1, frames.num_ready))
    assert popped is not None
    return popped.T


def expected_rows(folder: Path, family: Family, prompts: Mapping[str, Prompt]) -> dict[str, list[Row]]:
    """Generate replies with the reference; return the output-stream ids of all rows by request id."""
    reference = ReferenceModel(folder, family, TIGHT["max_model_len"])
    rows_by_name = {}
    for name, prompt in prompts.items():
        rows, lead = reference.reply(prompt)
        assert lead > MIN_MARGIN, f"{name}: two ids are equally likely in the reference; choose another seed"
        rows_by_name[name] = [row[: family.layout.num_output_streams] for row in rows]
    return rows_by_name


def num_preemptions(answers: Mapping[str, Answer]) -> int:
    """Return the total number of preemptions of these replies."""
    return sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer is not None)


def _compare(name: str, rows: list[Row], expected: list[Row]) -> None:
    if rows != expected:
        index = next(
            (i for i, (actual, other) in enumerate(zip(rows, expected, strict=False)) if actual != other), len(rows)
        )
        actual, other = (reply[index] if index < len(reply) else "the end" for reply in (rows, expected))
        raise AssertionError(f"{name}: row {index} of the reply: expected {other}, got {actual}")
