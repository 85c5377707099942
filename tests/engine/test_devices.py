"""All tensors of a step are on the device."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stretto.engine.worker.model_state import SpeechModelState
from stretto.engine.worker.step_graphs import padded_sizes
from stretto.families.tiny.family import TINY
from stretto.families.vita_audio.mechanism.module_rows import ModuleProgram, RowSpans
from tests.engine.devices import (
    GPU,
    PLAIN_KERNELS,
    STEP_KERNELS,
    TEXT_KERNELS,
    assert_sent_from_the_device,
    assert_steps_stay_on_the_device,
    batch_of,
    fake_kernels,
    fill,
    on_a_gpu,
)
from tests.engine.harness import DEFAULTS, Engine
from tests.random_checkpoints import write_checkpoint, write_modules
from tests.small_vocabularies import CSM, QWEN3_TTS, TRACKED_CSM, families_of_plugins
from tests.small_vocabularies import FAMILIES as PUBLISHED
from tests.speech_families import EIGHT_STREAMS, MODULES
from tests.tiers import by_night

pytestmark = pytest.mark.engine
# Those with the engine's own depth transformer or none, whose requests are as long as an engine's here.
OF_PLUGINS = {
    name: family
    for name, family in families_of_plugins().items()
    if family.max_model_len >= DEFAULTS["max_model_len"] and (family.depth is None or family.depth.network is None)
}
FAMILIES = {
    "tiny": TINY,
    "eight_streams": EIGHT_STREAMS,
    **PUBLISHED,
    "small_csm": CSM,
    "small_tracked_csm": TRACKED_CSM,
    "small_qwen3_tts": QWEN3_TTS,
    **OF_PLUGINS,
}
BY_DAY = ("tiny", "small_csm")


@pytest.mark.parametrize("uses_kernels", [True, *by_night(False)])
@pytest.mark.parametrize("name", [*BY_DAY, *by_night(*(name for name in FAMILIES if name not in BY_DAY))])
def test_steps_do_not_mix_devices(
    name: str, uses_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[name]
    backbone = "llama" if family.mechanism.conditions else "qwen3"
    write_checkpoint(tmp_path, family, name, backbone=backbone)
    options = {"max_num_batched_tokens": 64, "additional_config": {"step_kernels": uses_kernels}}
    engine = Engine(tmp_path, max_num_seqs=4, load_format="dummy", **options)
    assert_steps_stay_on_the_device(engine, uses_kernels, monkeypatch)


class BlocksOnTheDevice:
    """Fake attention metadata for MTP modules; the block tables belong to vLLM, whose kernels read them."""

    max_captured_rows, max_length = 1 << 20, 512

    def gather(self, slots: torch.Tensor) -> None:
        assert slots.device == GPU

    def map(self, spans: RowSpans) -> torch.Tensor:
        assert all(each.device == GPU for each in spans)
        return torch.zeros(1, len(spans.positions), dtype=torch.int64, device=GPU)

    def metadata(self, spans: RowSpans, *of_the_host: object) -> dict[str, Any]:
        assert all(each.device == GPU for each in spans)
        return {}

    def reads(self, metadata: dict[str, Any], num_rows: int) -> nullcontext[None]:
        return nullcontext()


@pytest.mark.parametrize("uses_kernels", [True, *by_night(False)])
def test_mtp_modules_do_not_mix_devices(uses_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_modules(tmp_path, MODULES, "modules", layers=1)
    options = {"max_num_batched_tokens": 64, "additional_config": {"step_kernels": uses_kernels}}
    engine = Engine(folder, max_num_seqs=4, load_format="dummy", **options)
    fake_kernels([*STEP_KERNELS, *TEXT_KERNELS, "keep_kernel"] if uses_kernels else PLAIN_KERNELS, monkeypatch)
    modules = Counter[int]()
    try:
        with on_a_gpu(engine, monkeypatch) as state:
            tokens = torch.zeros(4, state.max_model_len, dtype=torch.int32, device=GPU)
            requests = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=tokens))
            sampler, _ = state.custom_sampler(SimpleNamespace(penalties_state=None, req_states=requests))
            with_modules(state, modules, monkeypatch)
            fill(state, MODULES)
            # Ends of prompts, then multi-token steps of five rows: starts of steps in each schedule.
            for num_tokens, num_said in ((8, 0), (4, 5), (4, 10), (4, 15)):
                batch = batch_of(num_tokens)
                num_read = state.slots._num_prompt_rows + num_said
                computed = (num_read - batch.num_scheduled_tokens).astype(np.int32)
                batch = replace(batch, num_computed_tokens_np=computed, is_prefilling_np=np.full(4, num_said == 0))
                inputs = state.prepare_inputs(batch, requests)
                embedded = state.model.embed_rows(inputs["rows"], inputs["inputs_embeds"])
                output = sampler(torch.empty_like(embedded)[batch.logits_indices], batch)
                assert_sent_from_the_device(output)
            assert min(modules[k] for k in range(4)) >= 3
            recorded: list[Callable[[], None]] = []
            program = state._row_predictor._program
            program._graphs._recorder = SimpleNamespace(is_busy=lambda: False, record=recorded.append)
            state._row_predictor.capture()
            assert len(recorded) == 4 * len(padded_sizes(4))
    finally:
        engine.shutdown()


def with_modules(state: SpeechModelState, modules: Counter[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bind the modules to a fake KV cache, and count how often each runs."""
    predictor, model = state._row_predictor, state.model
    predictor._attention = BlocksOnTheDevice()
    network = predictor._model
    program = ModuleProgram(network, predictor._generated, predictor._ring, predictor._attention, None)
    predictor._program = program
    for layer in model.model.layers:
        monkeypatch.setattr(layer.self_attn.attn, "forward", lambda query, key, value: torch.empty_like(query))
    run_module = network.run_module

    def run(k: int, *tensors: torch.Tensor) -> torch.Tensor:
        modules[k] += 1
        assert {each.device for each in tensors} == {GPU}
        return run_module(k, *tensors)

    monkeypatch.setattr(network, "run_module", run)
