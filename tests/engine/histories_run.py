"""Player of histories on real engines, one step at a time, which compares every reply with the reference."""

import itertools
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.output import SchedulerOutput

from stretto.engine.prompt_checks import Capacity, check_prompt
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.reference import ReferenceModel
from tests import latent_model
from tests.engine.harness import DEFAULTS, Engine
from tests.engine.histories import (
    FAMILIES,
    MAX_BLOCKS,
    MAX_BUDGET,
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    Client,
    History,
    Limits,
    history_prompt,
)
from tests.engine.histories_checks import Order, bursts_of, check_blocks, check_pairs, check_slots
from tests.engine.histories_front import FrontEnd, Reader
from tests.random_checkpoints import write_checkpoint, write_modules
from tests.reference.module_lm import ModuleReference
from tests.speech_families import LATENTS, MODULES

MIN_MARGIN = 3e-5  # a decision closer than this may go either way when a batch adds its numbers in another order
MAX_IDLE_STEPS = 3
PATIENCE = 4000


@dataclass(frozen=True)
class Expected:
    """The reference's reply: rows of the output streams, and the smallest margin of its decisions."""

    rows: list[list[int]]
    lead: float


class Moods:
    """Replacement for the clock-dependent `StepLoad` that at times drops unconditional requests or restores one."""

    def __init__(self, seed: int | None):
        self._random = None if seed is None else np.random.default_rng(seed)

    def __call__(self, num_rows: int) -> int:
        """Return the number of unconditional requests to drop, or, if negative, to restore."""
        return 0 if self._random is None else int(self._random.choice((0, 0, 0, 0, 0, 1, 2, -1, -1)))


class Stage:
    """A family's random checkpoint, engines that serve it, and the reference's replies.

    The checkpoint has two layers. In a model of one layer, keys and values would depend on token ids alone, so that
    errors of attention would not propagate.
    """

    def __init__(self, folder: Path, name: str):
        self.family: Family = FAMILIES[name]
        self.folder = folder
        if self.family is MODULES:
            write_modules(folder, self.family, name)
        elif self.family is LATENTS:
            latent_model.write(folder, hidden=64, layers=2)
        else:
            write_checkpoint(folder, self.family, name, hidden=64, layers=2)
        self.seen: Counter[str] = Counter()
        self._engines: dict[tuple[bool, bool], Engine] = {}
        self._prompts: dict[int, Prompt] = {}
        self._expected: dict[tuple[int, tuple[tuple[int, bool], ...]], Expected] = {}

    @cached_property
    def _reference(self) -> ReferenceModel:
        reference = ModuleReference if self.family is MODULES else ReferenceModel
        return reference(self.folder, self.family, MAX_MODEL_LEN)

    def engine(self, limits: Limits) -> Engine:
        """Return the engine for `limits`, which is started once; limits that may change are set while it is empty."""
        key = (limits.is_async, limits.is_caching)
        if key not in self._engines:
            arguments = {
                "max_model_len": MAX_MODEL_LEN,
                "max_num_seqs": MAX_NUM_SEQS,
                "max_num_batched_tokens": MAX_BUDGET,
                "num_gpu_blocks_override": MAX_BLOCKS + 1,  # vLLM keeps one
                "async_scheduling": limits.is_async,
                "enable_prefix_caching": limits.is_caching,
            }
            self._engines[key] = Engine(self.folder, **arguments)
        engine = self._engines[key]
        engine.scheduler.max_num_running_reqs = engine.scheduler.max_num_active_reqs = limits.max_num_seqs
        engine.scheduler.max_num_scheduled_tokens = limits.budget
        engine.scheduler.guidance.load.excess = Moods(limits.moods)
        return engine

    def prompt(self, index: int) -> Prompt:
        """Return prompt number `index`."""
        if index not in self._prompts:
            self._prompts[index] = history_prompt(self.family, index)
        return self._prompts[index]

    def expected(self, index: int, changes: list[tuple[int, bool]], guess: list[list[int]]) -> Expected:
        """Return the reply to prompt number `index` with guidance switched by `changes`: (frame, is_guided)."""
        key = (index, tuple(changes))
        if key not in self._expected:
            rows, lead = self._reference.reply(self.prompt(index), changes, guess)
            self._expected[key] = Expected([row[: self.family.layout.num_output_streams] for row in rows], lead)
        return self._expected[key]

    def play(self, history: History) -> None:
        """Play `history`; raise AssertionError at the first violation."""
        try:
            if self.family is LATENTS:
                self._speak_alone({client.prompt for client in history.clients})
            engine = self.engine(history.limits)
            _Play(self, engine, history).run()
        except BaseException:
            self.close()  # the next history begins on clean ones
            raise

    def _speak_alone(self, numbers: set[int]) -> None:
        """Expect the replies to prompts that an engine gives to each alone, bit for bit.

        No other computation has the same bits; `test_latents.py` compares such replies with a plain one.
        """
        for index in numbers - {index for index, _ in self._expected}:
            reply = self.engine(Limits(is_caching=False)).run({"alone": self.prompt(index)})["alone"]
            self._expected[index, ()] = Expected(reply.rows, float("inf"))

    def close(self) -> None:
        """Stop all engines together, because they share state that the first one to stop removes."""
        while self._engines:
            self._engines.popitem()[1].shutdown()


class _Play:
    def __init__(self, stage: Stage, engine: Engine, history: History):
        self.stage, self.engine, self.history = stage, engine, history
        self.front, self.order = FrontEnd(engine.rules), Order(engine)
        self.readers: dict[str, Reader] = {}
        self.clients: dict[str, Client] = {}
        self.arrivals: dict[str, int] = {}
        self.taken: list[KVCacheBlock] = []
        self.num_idle = 0

    def run(self) -> None:
        pool = self.engine.scheduler.kv_cache_manager.block_pool
        self.taken = pool.get_new_blocks(pool.get_num_free_blocks() - self.history.limits.num_blocks)
        self.engine.after_schedule = self._check
        at = np.cumsum([client.gap for client in self.history.clients]).tolist()
        pending = {f"r{index}": client for index, client in enumerate(self.history.clients)}
        starts = dict(zip(pending, at, strict=True))
        step = 0
        while pending or self.engine.is_busy():
            for request_id in [each for each in pending if starts[each] <= step]:
                self._arrive(request_id, pending.pop(request_id), step)
            self._leave(step)
            self._step()
            check_blocks(self.engine, len(self.taken))
            self._read(step)
            step += 1
            assert step < PATIENCE, "it does not come to an end"
        self._end()
        pool.free_blocks(self.taken)
        self.engine.after_schedule = None
        assert self.engine.is_clean()

    def _arrive(self, request_id: str, client: Client, step: int) -> None:
        prompt = self.stage.prompt(client.prompt)
        limits = self.history.limits
        capacity = Capacity(limits.num_blocks + 1, int(str(DEFAULTS["block_size"])), limits.max_num_seqs)
        try:
            prompt = check_prompt(prompt, self.engine.rules, capacity)
        except InvalidRequest:
            self.stage.seen["refused"] += 1
            return
        self.clients[request_id], self.arrivals[request_id] = client, step
        self.readers[request_id] = self.front.add(request_id, prompt)
        self.order.arrive(request_id, client.host)
        self.engine.add(request_id, prompt, client.host)

    def _leave(self, step: int) -> None:
        for request_id, client in self.clients.items():
            if client.leaves_after is None or self.arrivals[request_id] + client.leaves_after != step:
                continue
            if not self.front.abort(request_id):
                continue
            self.readers.pop(request_id)
            self.stage.seen["left"] += 1
            if client.leaves_late:
                self.engine.core.aborts_queue.put_nowait([request_id])
            else:
                self.engine.core.abort_requests([request_id])

    def _step(self) -> None:
        outputs = self.engine.step()
        self.front.take(outputs)
        idle = not outputs and self.engine.is_busy() and not self.engine.moved
        self.num_idle = self.num_idle + 1 if idle else 0
        assert self.num_idle <= MAX_IDLE_STEPS, "requests are there, and nothing moves"

    def _check(self, output: SchedulerOutput) -> None:
        check_pairs(self.engine, output)
        check_slots(self.engine)
        self.order.check()
        self.stage.seen["skipped steps"] += self.engine.scheduler.turns.are_limiting
        self.stage.seen += bursts_of(self.engine, output)

    def _read(self, step: int) -> None:
        for request_id, reader in self.readers.items():
            if reader.trailer is None and (step + 1) % self.clients[request_id].reads_every == 0:
                reader.look()

    def _end(self) -> None:
        for request_id, reader in self.readers.items():
            if reader.trailer is None:
                assert reader.look(), f"{request_id} never ended"
            self._compare(request_id, reader)
        assert self.front.is_empty()

    def _compare(self, request_id: str, reader: Reader) -> None:
        number, seen = self.clients[request_id].prompt, self.stage.seen
        prompt = self.stage.prompt(number)
        audio = self.stage.family.layout.audio[0]
        frames = [index for index, row in enumerate(reader.rows) if row[0] in audio]
        changes = [(index - frames[0], is_guided) for index, is_guided in reader.changes]
        is_adaptive = prompt.sampling.policy == "adaptive"
        expected = self.stage.expected(number, changes if is_adaptive else [], reader.rows)
        if expected.lead < MIN_MARGIN:
            seen["near ties"] += 1
        else:
            assert reader.rows == expected.rows, f"{request_id}: prompt {number}, {changes}"
        assert reader.trailer is not None
        assert reader.trailer.num_guided_frames == self._count(prompt, len(frames), changes), request_id
        is_guided = prompt.sampling.guidance_scale != 1.0 and len(frames) > 0
        was_preempted = reader.trailer.num_preemptions > 0
        seen["replies"] += 1
        seen["guided"] += is_guided
        seen["guided for a time"] += len(changes) == 1 and not is_adaptive
        seen["dropped"] += is_adaptive and len(changes) > 0
        seen["restored"] += is_adaptive and len(changes) > 1
        seen["merged"] += reader.num_merged > 0
        seen["preempted"] += was_preempted
        seen["preempted pairs"] += was_preempted and is_guided

    def _count(self, prompt: Prompt, num_frames: int, changes: list[tuple[int, bool]]) -> int:
        """Return the number of guided frames among `num_frames` frames, by the policy and the reported `changes`."""
        if prompt.sampling.guidance_scale == 1.0:
            assert not changes
            return 0
        limit = self.engine.rules.max_guided_rows(prompt.sampling)
        if prompt.sampling.policy != "adaptive":
            assert changes in ([], [(limit, False)]), changes
            return num_frames if limit is None else min(num_frames, limit)
        assert [is_guided for _, is_guided in changes] == [index % 2 == 1 for index in range(len(changes))], changes
        stops = [0, *(frame for frame, _ in changes), num_frames]
        spans = itertools.pairwise(min(stop, num_frames) for stop in stops)
        return sum(last - first for index, (first, last) in enumerate(spans) if index % 2 == 0)
