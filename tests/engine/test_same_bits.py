"""Hidden states of every row are bit-identical unbatched, batched and with chunked prompts."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.cpu_backend import products
from stretto.cpu_backend.products import NARROW, CpuAttention, CpuLayer
from stretto.engine.worker.batch_plan import StepRows
from stretto.engine.worker.sampler import SpeechSampler
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_condition, make_prompt
from stretto.testing.conformance import num_preemptions
from tests.engine.attention_cache import SMALL
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint, write_modules
from tests.small_vocabularies import CSM, families_with_conditions
from tests.speech_families import EIGHT_STREAMS, MODULES
from tests.tiers import by_night

pytestmark = pytest.mark.engine

# A width at which oneDNN adds up one row in another order than two, with AVX-512, with a depth transformer and without,
# and with cross-attention; and modules: torch sums their projections in another order for one to three rows than for
# four, at any width.
CONDITIONED = families_with_conditions()
RELEASES: dict[str, tuple[Family, Callable[[Path], Path]]] = {
    "wide": (
        EIGHT_STREAMS,
        lambda folder: write_checkpoint(folder, EIGHT_STREAMS, "eight_streams", hidden=2048, layers=1),
    ),
    "wide with a depth transformer": (
        CSM,
        lambda folder: write_checkpoint(folder, CSM, "small_csm", hidden=2048, layers=1),
    ),
    "modules": (MODULES, lambda folder: write_modules(folder, MODULES, "modules")),
}
RELEASES |= {
    backbone: (
        EIGHT_STREAMS,
        lambda folder, backbone=backbone: write_checkpoint(folder, EIGHT_STREAMS, "eight_streams", backbone=backbone),
    )
    for backbone in ("llama", "qwen3")
}
RELEASES |= {
    name: (
        family,
        lambda folder, family=family: write_checkpoint(
            folder, family, family.name, hidden=2048, layers=1, backbone="llama"
        ),
    )
    for name, family in CONDITIONED.items()
}
RELEASES["one key head"] = (
    EIGHT_STREAMS,
    lambda folder: write_checkpoint(folder, EIGHT_STREAMS, "eight_streams", kv_heads=1),
)
# Prompts in chunks, the last of one row.
CHUNKS: dict[str, Any] = {"max_num_batched_tokens": 16, "max_num_seqs": 3}
Bits = dict[tuple[str, int], set[bytes]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Bits:
    """Return the hidden states that the sampler reads, by request and position; equal values count once."""
    met: Bits = defaultdict(set)
    sample = SpeechSampler._row

    def record(self: Any, hidden: torch.Tensor, batch: InputBatch, rows: StepRows, place: int = 0) -> Any:
        read = batch.num_computed_tokens_np + batch.num_scheduled_tokens
        for at in np.flatnonzero(rows.samples):
            met[batch.req_ids[at], int(read[at]) + place].add(hidden[at].numpy().tobytes())
        return sample(self, hidden, batch, rows, place)

    monkeypatch.setattr(SpeechSampler, "_row", record)
    return met


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return the row counts of the wide products that oneDNN has computed."""
    met, multiply = set[int](), products.onednn_mm

    def record(product: torch.Tensor, x: torch.Tensor, *more: object) -> None:
        if x.shape[1] > NARROW:
            met.add(len(x))
        multiply(product, x, *more)

    monkeypatch.setattr(products, "onednn_mm", record)
    return met


def make_prompts(family: Family) -> dict[str, Prompt]:
    """Return prompts of 1, 17 and 40 rows for three replies, one guided if the family can be."""
    made = {}
    for index, length in enumerate((1, 17, 40)):
        prompt = make_prompt(family, 2, family.tasks[0].name)
        scale = 2.0 if index == 1 and family.guided_streams else 1.0
        audio = replace(prompt.sampling.audio, max_rows=9 + index, temperature=0.9, top_k=10)
        sampling = replace(prompt.sampling, audio=audio, guidance_scale=scale, seed=index, schedule=None)
        made[f"r{index}"] = replace(
            prompt,
            rows=np.resize(prompt.rows, (length, prompt.rows.shape[1])),
            sampling=sampling,
            condition=make_condition(family, index),
        )
    return made


@pytest.mark.parametrize("name", ["wide", *by_night("modules", "wide with a depth transformer", *CONDITIONED)])
def test_hidden_states_do_not_depend_on_batching(tmp_path: Path, name: str, seen: Bits, multiplied: set[int]) -> None:
    family, write = RELEASES[name]
    folder, prompts = write(tmp_path), make_prompts(family)
    answers = []
    for options in ({}, CHUNKS):
        with Engine(folder, max_model_len=160, **options) as engine:
            if not options:
                alone = {name: engine.run({name: prompt})[name] for name, prompt in prompts.items()}
            answers.append(engine.run(prompts, {"r1": 2, "r2": 3}))
    for replies in answers:
        assert {name: answer.rows for name, answer in replies.items()} == {name: alone[name].rows for name in prompts}
    assert len(seen) > 30
    assert not [key for key, states in seen.items() if len(states) > 1]
    assert name == "modules" or min(multiplied) == 2, "on some processors a product of one row has other bits"


@pytest.mark.parametrize("name", ["one key head", *by_night("modules", "qwen3", "llama", *CONDITIONED)])
def test_cpu_layers_are_bit_identical_to_vllm_layers(tmp_path: Path, name: str, seen: Bits) -> None:
    """So are vLLM's layers with our attention alone, as in families that have layers of their own."""
    family, write = RELEASES[name]
    folder, prompts = write(tmp_path), make_prompts(family)
    for removed in ((), (CpuLayer,), (CpuLayer, CpuAttention)):
        with Engine(folder, max_model_len=160, **CHUNKS) as engine:
            model = engine.model_state.model
            replaced = [module for module in model.modules() if "forward" in vars(module)]
            kinds = [type(module.forward) for module in replaced]
            assert kinds.count(CpuLayer) == kinds.count(CpuAttention) == len(model.model.layers)
            for module in replaced:
                if isinstance(module.forward, removed):
                    del module.forward
            engine.run(prompts)
    assert len(seen) > 30
    assert not [key for key, states in seen.items() if len(states) > 1]


BLOCK = 32
# Rows of a prompt, and the cache that attention assumes; by night the processor's: 2 MiB give tiles of 1,928 keys. The
# prompt ends a few rows before its last block, so that the reply needs another block, and some reply is preempted.
LONG = [pytest.param(125, SMALL, id="small cache"), *by_night((2108, None), ids=["own cache"])]


@pytest.mark.parametrize(("num_rows", "cache_size"), LONG)
def test_long_prompts_are_bit_identical_in_chunks_after_prefix_hits_and_preemption(
    tmp_path: Path, num_rows: int, cache_size: int | None, seen: Bits
) -> None:
    folder = write_checkpoint(tmp_path, EIGHT_STREAMS, "eight_streams")
    random = np.random.default_rng(0)
    template = make_prompts(EIGHT_STREAMS)["r0"]
    pool = np.concatenate([make_prompt(EIGHT_STREAMS, number, EIGHT_STREAMS.tasks[0].name).rows for number in range(9)])
    rows = pool[random.integers(0, len(pool), num_rows)]
    prompts = {f"r{index}": replace(template, rows=rows[index:]) for index in range(3)}
    options: dict[str, Any] = {"max_model_len": num_rows + 60, "cache_size": cache_size}
    blocks = -(-num_rows // BLOCK) + 1
    hits = set[int]()

    def watch(output: SchedulerOutput) -> None:
        hits.update(new.num_computed_tokens for new in output.scheduled_new_reqs if new.req_id == "r0")

    with Engine(folder, **options, max_num_batched_tokens=num_rows) as engine:
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
    with Engine(folder, **options, max_num_batched_tokens=37) as engine:
        engine.after_schedule = watch
        for shared in (0, BLOCK, num_rows - 40, num_rows - 5):
            other = replace(template, rows=np.concatenate([rows[:shared], pool[:9]]))
            engine.core.reset_prefix_cache()
            engine.run({f"shares {shared} rows": other})
            answers = engine.run(prompts, {"r1": 1, "r2": 3})
            assert {name: answer.rows for name, answer in answers.items()} == alone
    assert hits == {rows // BLOCK * BLOCK for rows in (0, BLOCK, num_rows - 40, num_rows - 5)}
    with Engine(folder, **options, max_num_batched_tokens=16, num_gpu_blocks_override=2 * blocks) as engine:
        answers = engine.run(prompts, {"r1": 2, "r2": 5})
        assert {name: answer.rows for name, answer in answers.items()} == alone
        assert num_preemptions(answers) > 0
    assert not [key for key, states in seen.items() if len(states) > 1]
