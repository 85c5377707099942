"""Steps on torch's device `meta`, instead of a GPU. Its tensors have shapes and types but no numbers.

Operators whose tensors are on two devices, and operators that need a number, raise; on a GPU they would raise or block
the host.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_states.interface import ModelState

from stretto.engine.step_records import SpeechRequestData
from stretto.engine.worker.model_state import SpeechModelState
from stretto.engine.worker.step_graphs import padded_sizes
from stretto.engine.worker.step_program import StepSampler
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.streams.layout import Segment
from stretto.testing.checkpoints import make_prompt
from tests.engine.harness import Engine

GPU = torch.device("meta")
COPIES = {"_to_copy", "copy_"}
NUM_SLOTS = 4
# Kernels of each step that samples codes, without and with step kernels, and of one that samples latents.
PLAIN_KERNELS = "_draw_kernel", "_embed_kernel", "_gather_kernel"
TEXT_KERNELS = "text_maxima_kernel", "draw_text_kernel"
STEP_KERNELS = "attempt_keys_kernel", "draw_streams_kernel", "advance_kernel", "_embed_kernel", "_gather_kernel"
DEPTH_KERNELS = "depth_attention_kernel", "row_product_kernel"


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
    config = engine.core.vllm_config
    model = engine.model_state.model
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


def own_kernels(family: Family) -> set[str]:
    """Return the names of the kernels of a family's rules, in its `mechanism/kernel.py` or `mechanism/draw.py`."""
    package = type(family.drawing).__module__.rpartition(".")[0].removesuffix(".mechanism")
    names = set[str]()
    for module in ("kernel", "draw"):
        with suppress(ModuleNotFoundError):
            found = vars(import_module(f"{package}.mechanism.{module}"))
            names |= {name for name in found if name.endswith("_kernel")}
    return names


def fake_kernels(names: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, OnTheDevice]:
    """Put fake kernels into all modules of ours that have kernels of these names."""
    fakes = {name: OnTheDevice() for name in names}
    modules = [module for name, module in sys.modules.items() if name.startswith("stretto")]
    for name, fake in fakes.items():
        owners = [module for module in modules if name in vars(module)]
        assert owners, name
        for owner in owners:
            monkeypatch.setattr(owner, name, fake)
    return fakes


def sampler_of(state: SpeechModelState) -> Any:
    """Return the sampler of a worker, without penalties of vLLM."""
    tokens = torch.zeros(NUM_SLOTS, state.max_model_len, dtype=torch.int32, device=GPU)
    requests = SimpleNamespace(all_token_ids=SimpleNamespace(gpu=tokens))
    return state.custom_sampler(SimpleNamespace(penalties_state=None, req_states=requests))[0]


def batch_of(num_tokens: int) -> InputBatch:
    """Return a step of all slots with as many rows."""
    return InputBatch.make_dummy(NUM_SLOTS, num_tokens, InputBuffers(NUM_SLOTS, 64, GPU))


def assert_sent_from_the_device(output: Any, *others: torch.Tensor) -> None:
    """Assert that the tensors of a sampler's output, and others, are on the device."""
    sent = output.sampled_token_ids, *output.logprobs_tensors[:3], output.num_sampled, output.num_rejected
    assert {tensor.device for tensor in (*sent, *others)} == {GPU}
    assert len(output.sampled_token_ids) == NUM_SLOTS


def assert_captured_at_start(state: SpeechModelState, sampler: StepSampler, num_variants: int) -> None:
    """Assert that vLLM's hook captures steps of all sizes, with dummy rows."""
    assert "capture_inner_cudagraphs" in vars(ModelState)
    recorded: list[Callable[[], None]] = []
    sampler._graphs._recorder = SimpleNamespace(is_busy=lambda: False, record=recorded.append)
    state.capture_inner_cudagraphs(None, None, [], None)
    assert len(recorded) == sampler._graphs.num_graphs == num_variants * len(padded_sizes(NUM_SLOTS))


def assert_steps_stay_on_the_device(engine: Engine, uses_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that the steps of a family with codes do not mix devices, and stop the engine."""
    family = engine.rules.family
    names = {*STEP_KERNELS, *TEXT_KERNELS} if uses_kernels else {*PLAIN_KERNELS}
    if family.depth:
        names |= {*DEPTH_KERNELS}
    if uses_kernels:
        names |= own_kernels(family)
    speaks = any(Segment.AUDIO in task.segments for task in family.tasks)  # a writer with a speaker does not
    writes = engine.rules.num_text_ids > 0
    if not writes:
        names = {name for name in names if "text" not in name}
    if not speaks:
        names -= {"draw_streams_kernel"}
    kernels = fake_kernels(names, monkeypatch)
    try:
        with on_a_gpu(engine, monkeypatch) as state:
            sampler = sampler_of(state)
            fill(state, family)
            for num_tokens in (64, 9, 4):  # prefills, both at once, decodes
                batch = batch_of(num_tokens)
                inputs = state.prepare_inputs(batch, None)
                embedded = state.model.embed_rows(inputs["rows"], inputs["inputs_embeds"])
                told = state.model.layer_inputs(inputs["rows"])
                output = sampler(torch.empty_like(embedded)[batch.logits_indices], batch)
                assert_sent_from_the_device(output, *inputs.values(), embedded, *told.values())
            if uses_kernels:
                assert_captured_at_start(state, sampler, 3 if speaks and writes else 1)
    finally:
        engine.shutdown()
    assert all(kernel.num_launches >= 3 for kernel in kernels.values())


def assert_latent_steps_stay_on_the_device(
    release: Path, latent_steps: list[int], num_variants: int, uses_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assert that the steps of a family with latents do not mix devices.

    Solvers and the feedback network read no tensor values on the host, for any rows.

    Args:
        latent_steps: Numbers of solver steps that are captured.
        num_variants: Number of graphs for each size of a step.
    """
    options = {"step_kernels": uses_kernels, "latent_steps": latent_steps}
    more = {"max_num_batched_tokens": 64, "max_model_len": 96, "additional_config": options}
    engine = Engine(release, max_num_seqs=NUM_SLOTS, **more)
    names = {"_embed_kernel", "_gather_kernel"}
    if uses_kernels:
        names |= {*STEP_KERNELS[:3], "latent_inputs_kernel", *own_kernels(engine.rules.family)}
    kernels = fake_kernels(names, monkeypatch)
    try:
        with on_a_gpu(engine, monkeypatch) as state:
            sampler = sampler_of(state)
            fill(state, engine.rules.family)
            width = state.model.latent_readout(state.rules).width
            embed = state.model.embed_latents
            num_embedded = list[int]()
            state.model.embed_latents = lambda latents: (num_embedded.append(len(latents)), embed(latents))[1]
            for num_tokens in (64, 4):
                batch = batch_of(num_tokens)
                inputs = state.prepare_inputs(batch, None)
                assert ("latent_rows" in inputs) == (num_tokens == 64)
                embedded = state.model.embed_rows(inputs["rows"], inputs["inputs_embeds"], inputs.get("latent_rows"))
                assert num_embedded.pop() == len(inputs.get("latent_rows", inputs["rows"]))
                told = state.model.layer_inputs(inputs["rows"])
                output = sampler(embedded.new_empty(len(embedded), width)[batch.logits_indices], batch)
                assert_sent_from_the_device(output, *inputs.values(), embedded, *told.values())
            if uses_kernels:
                assert len(sampler._program.variants) == num_variants
                assert_captured_at_start(state, sampler, num_variants)
    finally:
        engine.shutdown()
    assert all(kernel.num_launches >= 2 for kernel in kernels.values())
