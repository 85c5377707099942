"""Depth transformers on a GPU: the interpreted kernels against torch layers, and the number of launches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.runtime.interpreter import InterpreterBuilder
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers import linear, rotary_embedding

from stretto.cpu_backend.depth import CpuSteppedDepth
from stretto.engine.kernels.gpu import depth as attention
from stretto.engine.kernels.gpu import row_products
from stretto.engine.kernels.gpu.depth import DeviceDepth, DeviceSteppedDepth
from stretto.engine.models.depth_transformer import DepthTransformer, SteppedDepth
from stretto.families.qwen3_tts.family import DEPTH as QWEN3_TTS
from stretto.family.base import DepthSpec
from tests.engine.kernels.gpu.operators import Count, Launches
from tests.engine.kernels.gpu.test_row_products import multiply_in_order
from tests.engine.plain_depth import PlainDepth
from tests.tensor_cores import round_to_nearest
from tests.tiers import by_night

NUM_CODES, WIDTH = 11, 24
PLAIN = DepthSpec(32, 48, 2, 4, 2, 8, 1e-5, {"rope_type": "default", "rope_theta": 500000.0})
# Llama's layers, Qwen3's, one key head for all queries or one for each, no power of two; stream 0 from position 0.
SPECS = {
    "llama": PLAIN,
    "qwen3": replace(PLAIN, has_head_norms=True, projection="biased"),
    "one_key_head": replace(PLAIN, num_heads=3, num_kv_heads=1, has_head_norms=True),
    "no_groups": replace(PLAIN, num_heads=2, num_kv_heads=2, head_dim=12, num_layers=1),
    "first_of_position_0": replace(PLAIN, hidden=WIDTH, projection=None, has_head_norms=True, num_first=1),
}


@contextmanager
def single_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let vLLM's layers be built without process groups."""
    monkeypatch.setattr(parallel_state, "_TP", SimpleNamespace(rank_in_group=0, world_size=1))
    monkeypatch.setattr(rotary_embedding, "_ROPE_DICT", {})
    with set_current_vllm_config(VllmConfig()):
        yield


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return a matrix product whose rows do not depend on each other."""
    if isinstance(x, FakeTensor):
        return F.linear(x, weight, bias)
    return torch.cat([F.linear(row, weight, bias) for row in x.split(1)])


def build(spec: DepthSpec, num_streams: int, seed: int | None) -> Any:
    """Return a depth transformer whose products are torch's, with random weights unless `seed` is None."""
    made = (SteppedDepth if spec.schedule else DepthTransformer)(spec, [NUM_CODES] * num_streams, 1, WIDTH)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(False)
        if seed is not None:
            random = torch.Generator().manual_seed(seed + len(name) + parameter.numel())
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3 + ("norm" in name))
    for layer in made.modules():
        if isinstance(layer, linear.LinearBase):
            layer.cpu_linear = product
    return made


@pytest.mark.parametrize("num_streams", [5, pytest.param(32, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", [next(iter(SPECS)), *by_night(*list(SPECS)[1:])])
@torch.inference_mode()
def test_depth_states_match_the_torch_layers(name: str, num_streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with single_rank(monkeypatch):
        made = build(SPECS[name], num_streams, seed=1)
    expected, ours, alone = PlainDepth(made), DeviceDepth(made), DeviceDepth(made)
    for each in (expected, ours, alone):
        each.prepare(4)
    hidden, codes = torch.randn(3, WIDTH), torch.randint(NUM_CODES, (3, num_streams))
    for _ in range(2):  # a second frame overwrites the keys and values of the first
        if SPECS[name].num_first:
            given = hidden.clone()
            found = ours.start(hidden)
            torch.testing.assert_close(found, expected.start(hidden), rtol=2e-5, atol=2e-5)
            assert torch.equal(alone.start(hidden[1:2]), found[1:2])
            assert torch.equal(hidden, given), "the hidden states are read, not changed"
        found = ours.begin(hidden, codes[:, 0])
        torch.testing.assert_close(found, expected.begin(hidden, codes[:, 0]), rtol=2e-5, atol=2e-5)
        assert torch.equal(alone.begin(hidden[1:2], codes[1:2, 0]), found[1:2]), "a row depends on no other"
        for position in range(2, num_streams):
            code = codes[:, position - 1] + (position - 1) * NUM_CODES
            found = ours.next(code, position)
            torch.testing.assert_close(found, expected.next(code, position), rtol=2e-5, atol=2e-5)
            assert torch.equal(alone.next(code[1:2], position), found[1:2])
        hidden, codes = hidden.flip(0), codes.flip(0)


@torch.inference_mode()
def test_depth_states_with_per_position_weights_match_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, the ids that a plug-in's tests sample from such states equal those of the authors' model.

    The second row has no id of the second text stream, which position 0 reads.
    """
    spec = DepthSpec(32, 48, 2, 4, 2, 8, 1e-8, schedule=(0, 1, 1, 2), num_second_ids=6)
    with single_rank(monkeypatch):
        made = build(spec, 5, seed=4)
    ours, alone, expected = DeviceSteppedDepth(made), DeviceSteppedDepth(made), CpuSteppedDepth(made)
    for each in (ours, alone, expected):
        each.prepare(4)
    hidden, ids = torch.randn(3, WIDTH), torch.randint(NUM_CODES, (3, 4)) + torch.arange(4) * NUM_CODES
    second = torch.tensor([4 * NUM_CODES, -1, 4 * NUM_CODES + 5])
    for _ in range(2):
        for position in range(1, 5):
            found, other, wanted = (
                each.begin(hidden[:n], ids[:n, 0], second[:n])
                if position == 1
                else each.next(ids[:n, position - 1], position)
                for each, n in ((ours, 3), (alone, 1), (expected, 3))
            )
            torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)  # of two layers, whose sums have any order
            assert torch.equal(other, found[:1]), "a row depends on no other"
        hidden, ids = hidden.flip(0), ids.flip(0)
    both = expected.begin(hidden, ids[:, 0], second).clone()  # the next call overwrites it
    one = expected.begin(hidden, ids[:, 0])
    assert (both != one).any(1).tolist() == [True, False, True]


@torch.inference_mode()
def test_bfloat16_depth_heads_are_close_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "create_dot", multiply_in_order)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", round_to_nearest)
    with single_rank(monkeypatch):
        wide = PlainDepth(build(SPECS["qwen3"], 5, seed=2))
        narrow = build(SPECS["qwen3"], 5, seed=2).bfloat16()
    ours = DeviceDepth(narrow)
    wide.prepare(2)
    ours.prepare(2)
    hidden, code = torch.randn(2, WIDTH), torch.tensor([3, 4])
    exact, found = wide.begin(hidden, code), ours.begin(hidden.bfloat16(), code)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() < 0.1 * exact.abs().max()
    exact, found = wide.next(code + NUM_CODES, 2), ours.next(code + NUM_CODES, 2)
    assert (found.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_positions_beyond_the_kernel_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with single_rank(monkeypatch), pytest.raises(ValueError, match="at most 32 positions, got 33"):
        DeviceDepth(build(replace(PLAIN, num_layers=1), 33, seed=3))


@torch.inference_mode()
def test_qwen3_tts_depth_pass_launches_five_kernels_per_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake CUDA device is used, with vLLM's custom operators disabled as in its default compilation mode."""
    launches = Launches()
    monkeypatch.setattr(attention, "depth_attention_kernel", launches)
    monkeypatch.setattr(row_products, "row_product_kernel", launches)
    library = torch.library.Library("_C", "FRAGMENT")
    for operator in ("rms_norm", "fused_add_rms_norm", "silu_and_mul"):
        torch.library.register_fake(f"_C::{operator}", lambda *args: None, lib=library)
    with single_rank(monkeypatch), FakeTensorMode(allow_non_fake_inputs=False):
        with torch.device("cuda"):
            depth = DeviceDepth(build(QWEN3_TTS, 16, seed=None))
            hidden, code = torch.zeros(1, WIDTH), torch.zeros(1, dtype=torch.int32)
        depth.prepare(4)
        with Count() as begun:
            depth.begin(hidden, code)
        in_begin, launches.count = launches.count, 0
        with Count() as counted:
            states = depth.next(code, 5)
    assert (states.device.type, states.shape) == ("cuda", (1, QWEN3_TTS.hidden))
    # The product of the backbone's hidden state is in the first pass only.
    assert in_begin == launches.count + 1 == 5 * QWEN3_TTS.num_layers + 1
    total = counted.operators.total() + launches.count
    assert total <= 5 * QWEN3_TTS.num_layers + 2, counted.operators  # an embedding, and the last norm
    assert begun.operators.total() + in_begin <= total + 3, begun.operators
