"""All tensors of a step are on the device.

The steps run on torch's device `meta`, whose tensors have shapes and types but no numbers. Operators whose tensors are
on two devices, and operators that need a number, raise; on a GPU they would raise or block the host.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_states.interface import ModelState

from plugins.pocket.tests import pocket_release
from plugins.vibevoice.tests import vibevoice_release
from plugins.voxcpm2.tests import voxcpm2_release
from stretto.engine.kernels.gpu import advance, depth, draw, products, row_products
from stretto.engine.step_records import SpeechRequestData
from stretto.engine.worker import latent_draw, step_program
from stretto.engine.worker.model_state import SpeechModelState
from stretto.engine.worker.step_graphs import padded_sizes
from stretto.engine.worker.step_program import StepSampler
from stretto.families.tiny.family import TINY, AlignmentPointer
from stretto.families.tiny.mechanism import draw as tiny_draw
from stretto.families.vita_audio.mechanism.module_rows import ModuleProgram, RowSpans
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from stretto_higgs_audio.higgs_audio.family import Staircase
from stretto_higgs_audio.higgs_audio.mechanism import arrays as stairs
from stretto_kyutai.kyutai_tts.mechanism import arrays as word_states
from stretto_kyutai.kyutai_tts.mechanism.script import WordScript
from stretto_moss.moss_tts.family import DelaySlots
from stretto_moss.moss_tts.mechanism import arrays as slots
from stretto_vibevoice.vibevoice.mechanism import draw as stretches
from stretto_voxcpm2.mechanism import draw as guided
from tests.engine.harness import Engine
from tests.random_checkpoints import write_checkpoint, write_modules
from tests.small_vocabularies import (
    CONDITIONED,
    CSM,
    FISH_S2,
    HIGGS_AUDIO,
    MOSS_TTS,
    MOSS_TTS_REALTIME,
    QWEN3_TTS,
    TRACKED_CSM,
    TURBO,
)
from tests.small_vocabularies import FAMILIES as PUBLISHED
from tests.speech_families import EIGHT_STREAMS, MODULES
from tests.tiers import by_night

pytestmark = pytest.mark.engine
GPU = torch.device("meta")
COPIES = {"_to_copy", "copy_"}
FAMILIES = {
    "tiny": TINY,
    "eight_streams": EIGHT_STREAMS,
    **PUBLISHED,
    "small_csm": CSM,
    "small_tracked_csm": TRACKED_CSM,
    "small_qwen3_tts": QWEN3_TTS,
    "small_higgs_audio": HIGGS_AUDIO,
    "small_moss_tts": MOSS_TTS,
    "small_moss_tts_realtime": MOSS_TTS_REALTIME,
    "small_turbo": TURBO,
    "small_fish_s2": FISH_S2,
    "conditioned": CONDITIONED.build(None),
}
BY_DAY = ("tiny", "small_csm")


class OneDevice(TorchDispatchMode):
    """Dispatch mode that lets only copies mix devices; torch also allows some other operators, and then waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        name = func._overloadpacket.__name__
        assert name in COPIES or len({each.device for each in tensors}) <= 1, f"{name}: {tensors}"
        if func.namespace == "_C" and tensors[0].device == GPU:  # vLLM's own, in place
            return None
        return func(*args, **(kwargs or {}))


class OnTheDevice:
    """Fake Triton kernel, which checks that a GPU can read all of its tensors."""

    def __init__(self) -> None:
        self.num_launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            assert all(each.device == GPU for each in args if isinstance(each, torch.Tensor)), args
            assert sum(isinstance(each, torch.Tensor) for each in args) >= 3
            assert not options.keys() - {"num_warps", "num_stages", "enable_fp_fusion"}
            self.num_launches += 1

        return launch


def on_the_device(tensor: torch.Tensor) -> torch.Tensor:
    there = torch.empty_like(tensor, device=GPU)
    return torch.nn.Parameter(there, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else there


def multiply(num_out: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight.new_empty(num_out, x.shape[-1]), bias)


@contextmanager
def on_a_gpu(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpeechModelState]:
    """Return the state of a worker like that of `engine`, with the model's weights and buffers as if on a GPU."""
    config, model = engine.core.vllm_config, engine.model_state.model
    for module in model.modules():
        for kind in (module._parameters, module._buffers, vars(module)):
            for name, tensor in list(kind.items()):
                if isinstance(tensor, torch.Tensor):
                    monkeypatch.setitem(kind, name, on_the_device(tensor))
        vars(module).pop("forward", None)  # of a decoder layer on the CPU
        if hasattr(module, "cpu_linear"):  # vLLM's product on a CPU, where it keeps only packed weights
            monkeypatch.setattr(module, "cpu_linear", partial(multiply, module.output_size))
            empty = module.weight.new_empty(module.output_size, module.input_size)
            monkeypatch.setitem(module._parameters, "weight", torch.nn.Parameter(empty, requires_grad=False))
    with OneDevice():
        yield SpeechModelState(config, model, None, GPU)


def request(slot: int, prompt: Prompt, is_unconditional: bool = False) -> SpeechRequestData:
    """Return a prompt that gets a slot, with the codes of its rows."""
    ids = prompt.rows[:, 0].tolist()
    name = f"r{slot // 2}" + "#unconditional" * is_unconditional
    data = NewRequestData(name, ids, [], None, None, ([1],), 0, None, prefill_token_ids=ids)
    return SpeechRequestData.extending(data, prompt, prompt.rows[:, 1:])


def fill(state: SpeechModelState, family: Family) -> None:
    """Fill the slots: CFG pairs in 0 and 1, 2 and 3 if the family guides, single replies otherwise.

    One half is greedy, the other random; some redraw repeats.
    """
    for slot in range(state.max_num_reqs):
        prompt = make_prompt(family, 1 + slot // 2, ras_window=7 * (slot % 4 < 2))
        is_second = slot % 2 == 1 and bool(family.guided_streams)
        state.add_request(slot, request(slot if family.guided_streams else 2 * slot, prompt, is_second))
    state.apply_staged_writes()


# Launches of a step, with its kernels or with torch only, by family.
KERNELS = {
    False: {"_draw_kernel": draw, "_embed_kernel": products, "_gather_kernel": advance},
    True: {
        **dict.fromkeys(("text_maxima_kernel", "draw_text_kernel", "draw_streams_kernel"), step_program),
        "advance_kernel": step_program,
        "_embed_kernel": products,
        "_gather_kernel": advance,
    },
}

OWNERS = {
    "depth_attention_kernel": depth,
    "row_product_kernel": row_products,
    "words_kernel": word_states,
    "stairs_kernel": stairs,
    "slots_kernel": slots,
    "draw_script_kernel": tiny_draw,
}
# Kernels of the families' own rules.
RULES = {
    AlignmentPointer: "draw_script_kernel",
    DelaySlots: "slots_kernel",
    Staircase: "stairs_kernel",
    WordScript: "words_kernel",
}


def random_checkpoint(folder: Path, family: Family, name: str) -> Path:
    """Write a one-layer checkpoint of the family's model class."""
    write_checkpoint(folder, family, name, layers=1, backbone="llama" if family.mechanism.conditions else "qwen3")
    if family.audio_head and family is HIGGS_AUDIO:
        path = folder / "config.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"architectures": ["StrettoHiggsAudioForCausalLM"], "model_type": "llama"}))
    return folder


def captured_at_start(state: SpeechModelState, sampler: StepSampler) -> None:
    """vLLM's hook captures steps of all sizes, with dummy rows."""
    num_variants = 3 if state.rules.num_text_ids else 1
    assert "capture_inner_cudagraphs" in vars(ModelState)
    recorded: list[Callable[[], None]] = []
    sampler._graphs._recorder = SimpleNamespace(is_busy=lambda: False, record=recorded.append)
    state.capture_inner_cudagraphs(None, None, [], None)
    assert len(recorded) == sampler._graphs.num_graphs == num_variants * len(padded_sizes(4))


@pytest.mark.parametrize("uses_kernels", [True, *by_night(False)])
@pytest.mark.parametrize("name", [*BY_DAY, *by_night(*(name for name in FAMILIES if name not in BY_DAY))])
def test_steps_do_not_mix_devices(
    name: str, uses_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[name]
    more = {"max_num_batched_tokens": 64, "additional_config": {"step_kernels": uses_kernels}}
    engine = Engine(random_checkpoint(tmp_path, family, name), max_num_seqs=4, load_format="dummy", **more)
    kernels = {name: OnTheDevice() for name in KERNELS[uses_kernels]}
    if family.depth:
        kernels |= {name: OnTheDevice() for name in ("depth_attention_kernel", "row_product_kernel")}
    if uses_kernels:
        kernels |= {kernel: OnTheDevice() for rules, kernel in RULES.items() if isinstance(family.drawing, rules)}
    if not engine.rules.num_text_ids:
        kernels = {name: kernel for name, kernel in kernels.items() if "text" not in name}
    for name, kernel in kernels.items():
        owner = OWNERS.get(name) or KERNELS[uses_kernels].get(name, step_program)
        monkeypatch.setattr(owner, name, kernel)
    tokens = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=None))
    try:
        with on_a_gpu(engine, monkeypatch) as state:
            tokens.all_token_ids.gpu = torch.zeros(4, state.max_model_len, dtype=torch.int32, device=GPU)
            sampler, _ = state.custom_sampler(SimpleNamespace(penalties_state=None, req_states=tokens))
            fill(state, family)
            for num_tokens in (64, 9, 4):  # prefills, both at once, decodes
                batch = InputBatch.make_dummy(4, num_tokens, InputBuffers(4, 64, GPU))
                inputs = state.prepare_inputs(batch, None)
                embedded = state.model.embed_rows(inputs["rows"], inputs["inputs_embeds"])
                told = state.model.layer_inputs(inputs["rows"])
                output = sampler(torch.empty_like(embedded)[batch.logits_indices], batch)
                sent = output.sampled_token_ids, *output.logprobs_tensors[:3], output.num_sampled, output.num_rejected
                for tensor in (*inputs.values(), embedded, *told.values(), *sent):
                    assert tensor.device == GPU
                assert len(output.sampled_token_ids) == 4
            if uses_kernels:
                captured_at_start(state, sampler)
    finally:
        engine.shutdown()
    assert all(kernel.num_launches >= 3 for kernel in kernels.values())


OWN_KERNELS = {
    "vibevoice": [("mask_after_end_kernel", stretches), ("stretch_inputs_kernel", stretches)],
    "voxcpm2": [("previous_latents_kernel", guided)],
}
RELEASES: dict[str, Callable[[Path], Path]] = {
    "pocket_tts": lambda folder: pocket_release.convert_release(folder, "english"),
    "voxcpm2": voxcpm2_release.convert_release,
    "vibevoice": vibevoice_release.convert_release,
}


@pytest.mark.parametrize("uses_kernels", [True, *by_night(False)])
@pytest.mark.parametrize("name", ["pocket_tts", *by_night(*(name for name in RELEASES if name != "pocket_tts"))])
def test_latent_steps_do_not_mix_devices(
    name: str, uses_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Solvers and the feedback network read no tensor values on the host, for any rows."""
    options = {"step_kernels": uses_kernels, "latent_steps": [1] if name == "pocket_tts" else [2, 10]}
    more = {"max_num_batched_tokens": 64, "max_model_len": 96, "additional_config": options}
    engine = Engine(RELEASES[name](tmp_path), max_num_seqs=4, **more)
    family, kernels = engine.rules.family, dict[str, OnTheDevice]()
    for kernel, owner in (
        ("_embed_kernel", products),
        ("_gather_kernel", advance),
        *((("draw_streams_kernel", step_program), ("advance_kernel", step_program)) if uses_kernels else ()),
        *((("latent_inputs_kernel", latent_draw),) if uses_kernels else ()),
        *(OWN_KERNELS.get(name, ()) if uses_kernels else ()),
    ):
        kernels[kernel] = OnTheDevice()
        monkeypatch.setattr(owner, kernel, kernels[kernel])
    requests = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=None))
    try:
        with on_a_gpu(engine, monkeypatch) as state:
            requests.all_token_ids.gpu = torch.zeros(4, state.max_model_len, dtype=torch.int32, device=GPU)
            sampler, _ = state.custom_sampler(SimpleNamespace(penalties_state=None, req_states=requests))
            fill(state, family)
            width = state.model.latent_readout(state.rules).width
            embed, num_embedded = state.model.embed_latents, list[int]()
            state.model.embed_latents = lambda latents: (num_embedded.append(len(latents)), embed(latents))[1]
            for num_tokens in (64, 4):
                batch = InputBatch.make_dummy(4, num_tokens, InputBuffers(4, 64, GPU))
                inputs = state.prepare_inputs(batch, None)
                assert ("latent_rows" in inputs) == (num_tokens == 64)
                embedded = state.model.embed_rows(inputs["rows"], inputs["inputs_embeds"], inputs.get("latent_rows"))
                assert num_embedded.pop() == len(inputs.get("latent_rows", inputs["rows"]))
                told = state.model.layer_inputs(inputs["rows"])
                hidden = embedded.new_empty(len(embedded), width)
                output = sampler(hidden[batch.logits_indices], batch)
                sent = output.sampled_token_ids, *output.logprobs_tensors[:3], output.num_sampled, output.num_rejected
                assert {each.device for each in (*inputs.values(), embedded, *told.values(), *sent)} == {GPU}
            if uses_kernels:
                variants = sampler._program.variants
                assert len(variants) == (1 if name == "pocket_tts" else 4)
                recorded: list[Callable[[], None]] = []
                sampler._graphs._recorder = SimpleNamespace(is_busy=lambda: False, record=recorded.append)
                state.capture_inner_cudagraphs(None, None, [], None)
                assert len(recorded) == sampler._graphs.num_graphs == len(variants) * len(padded_sizes(4))
    finally:
        engine.shutdown()
    assert all(kernel.num_launches >= 2 for kernel in kernels.values())


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
    for name, owner in KERNELS[uses_kernels].items():
        monkeypatch.setattr(owner, name, OnTheDevice())
    monkeypatch.setattr(step_program, "keep_kernel", OnTheDevice())
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
                batch = InputBatch.make_dummy(4, num_tokens, InputBuffers(4, 64, GPU))
                num_read = state.slots._num_prompt_rows + num_said
                computed = (num_read - batch.num_scheduled_tokens).astype(np.int32)
                batch = replace(batch, num_computed_tokens_np=computed, is_prefilling_np=np.full(4, num_said == 0))
                inputs = state.prepare_inputs(batch, requests)
                embedded = state.model.embed_rows(inputs["rows"], inputs["inputs_embeds"])
                output = sampler(torch.empty_like(embedded)[batch.logits_indices], batch)
                sent = output.sampled_token_ids, *output.logprobs_tensors[:3], output.num_sampled, output.num_rejected
                assert {each.device for each in sent} == {GPU}
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
