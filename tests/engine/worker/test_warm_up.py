"""Warm-up of a GPU worker before its first request, and the memory that graphs keep."""

from collections.abc import Iterator

import pytest
import torch
from vllm.v1.core.sched.output import GrammarOutput, NewRequestData
from vllm.v1.worker.gpu.warmup import run_mixed_prefill_decode_warmup, warmup_kernels

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.run_slots import warmup_request
from stretto.families.tiny.family import TINY
from stretto.testing.checkpoints import make_prompts
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY, "tiny"), max_num_seqs=4) as running:
        yield running


def test_memory_profiling_samples_the_maximum_number_of_rows(engine: Engine) -> None:
    runner = engine.core.model_executor.driver_worker.worker.model_runner
    drawn: list[int] = []
    heads = runner.sampler._draw.heads
    raw_codes = heads.raw_codes
    heads.raw_codes = lambda hidden: drawn.append(len(hidden)) or raw_codes(hidden)
    runner.profile_run()
    heads.raw_codes = raw_codes
    assert drawn == [engine.scheduler.max_num_running_reqs]
    assert engine.is_clean()


def test_vllm_warm_up_runs_without_changing_replies(engine: Engine) -> None:
    prompts = make_prompts(TINY, 6)
    before = {name: answer.rows for name, answer in engine.run(prompts).items()}
    worker = engine.core.model_executor.driver_worker.worker

    def sample(grammar: GrammarOutput | None) -> object:
        return worker.sample_tokens(None)  # Triton's interpreter cannot run the kernel that applies a grammar

    warmup_kernels(worker.model_runner, worker.execute_model, sample)
    assert run_mixed_prefill_decode_warmup(worker.model_runner, worker.execute_model, worker.sample_tokens, 16)
    assert engine.is_clean()
    engine.core.reset_prefix_cache()  # the warm-up wrote into blocks
    assert {name: answer.rows for name, answer in engine.run(prompts).items()} == before


def test_model_inputs_stay_at_the_captured_graph_addresses(engine: Engine) -> None:
    """They are at the captured addresses at every step, for any number of rows."""
    state, model = engine.model_state, engine.model_state.model
    seen: set[tuple[int, int]] = set()

    def note(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.add((kwargs["rows"].data_ptr(), kwargs["inputs_embeds"].data_ptr()))

    inner: set[int] = set()
    hooks = [
        model.register_forward_pre_hook(note, with_kwargs=True),
        model.model.layers[0].register_forward_pre_hook(lambda layer, args: inner.add(args[1].data_ptr())),
    ]
    engine.run(make_prompts(TINY, 4))
    for hook in hooks:
        hook.remove()
    dummy = state.prepare_dummy_inputs(2, 8)
    assert seen == {(dummy["rows"].data_ptr(), dummy["inputs_embeds"].data_ptr())}
    assert inner == {dummy["inputs_embeds"].data_ptr()}
    assert dummy["rows"].shape[0] == dummy["inputs_embeds"].shape[0] == 8


def test_engine_refuses_requests_that_bypass_speech_llm() -> None:
    data = NewRequestData("stray", [1, 2], [], None, None, ([1],), 0, None, prefill_token_ids=[1, 2])
    with pytest.raises(TypeError, match="stray did not come through SpeechLLM"):
        warmup_request(data, SegmentRules(TINY, 512))
