"""Layers outside torch.compile call fused operators; the tests use those of vLLM's CPU build."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding import get_rope

from stretto.engine.kernels.gpu import products

SIZE = 32


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act_fn = RMSNorm(SIZE), SiluAndMul()
        self.rotary_emb = get_rope(SIZE, max_position=8, rope_parameters={"rope_type": "default", "rope_theta": 1e4})


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> tuple[Layer, Layer]:
    """Return a layer with fused operators and one without, which share a rotary embedding, as in vLLM."""
    monkeypatch.setattr(rotary_embedding, "_ROPE_DICT", {})
    with set_current_vllm_config(VllmConfig()):
        ours, native = Layer(), Layer()
    assert ours.rotary_emb is native.rotary_emb
    weight = torch.rand(SIZE) + 0.5
    for layer in (ours, native):
        layer.norm.weight.data.copy_(weight)
        layer.norm._forward_method = layer.norm.forward_native
        layer.act_fn._forward_method = layer.act_fn.forward_native
    native.rotary_emb._forward_method = native.rotary_emb.forward_native
    products.use_fused_operators(ours)
    return ours, native


@torch.inference_mode()
def test_fused_layers_match_the_native_operators(layers: tuple[Layer, Layer]) -> None:
    ours, native = layers
    x, residual = torch.randn(3, SIZE), torch.randn(3, SIZE)
    torch.testing.assert_close(ours.norm(x), native.norm(x))
    expected = native.norm(x.clone(), residual.clone())
    for found, wanted in zip(ours.norm(x, residual), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    wide = torch.randn(3, 2 * SIZE)
    torch.testing.assert_close(ours.act_fn(wide), native.act_fn(wide))
    query, key, positions = torch.randn(3, 2 * SIZE), torch.randn(3, SIZE), torch.tensor([0, 3, 7])
    expected = native.rotary_emb(positions, query.clone(), key.clone())
    for found, wanted in zip(ours.rotary_emb(positions, query, key), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_shared_rotary_embedding_is_not_modified(layers: tuple[Layer, Layer]) -> None:
    ours, native = layers
    assert ours.rotary_emb is not native.rotary_emb
    assert native.rotary_emb._forward_method == native.rotary_emb.forward_native
    assert ours.rotary_emb.cos_sin_cache is native.rotary_emb.cos_sin_cache


@pytest.mark.parametrize("is_compiled", [True, False])
def test_compiled_modules_keep_their_operators(layers: tuple[Layer, Layer], is_compiled: bool) -> None:
    class Backbone(nn.Module, TorchCompileWithNoGuardsWrapper):  # as `support_torch_compile` makes it
        do_not_compile = not is_compiled

        def __init__(self, layer: Layer):
            nn.Module.__init__(self)
            self.layer = layer

    _, native = layers
    products.use_fused_operators(nn.Sequential(Backbone(native)))
    assert (native.act_fn._forward_method == native.act_fn.forward_native) == is_compiled
    assert (native.norm._forward_method == native.norm.forward_native) == is_compiled


def test_batch_invariant_mode_uses_the_vllm_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    layer = SimpleNamespace(forward_cuda=lambda x, residual: ("invariant", x, residual))
    assert products.rms_norm(layer, 1, 2) == ("invariant", 1, 2)
