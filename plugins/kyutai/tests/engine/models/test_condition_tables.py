"""Tables of speaker vectors: one product for all layers on a GPU, with the results of a product for each layer."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from stretto_kyutai.kyutai_tts.mechanism.model import Conditions, CrossAttention, stacked_weights
from stretto_kyutai.kyutai_tts.mechanism.speakers import SpeakerConditions
from tests.engine.kernels.gpu.operators import Count

WIDTH, HEADS, ROWS, SLOTS = 8, 2, 5, 3
SPEC = SpeakerConditions(num_ids=4, vector_width=3, vector_rows=ROWS)


class Projection(nn.Linear):
    """Linear layer with the attributes of vLLM's."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 2 * WIDTH, bias=False)
        self.quant_method: Any = UnquantizedLinearMethod()


class Attention(CrossAttention):
    """Cross-attention without the layers that a step needs."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.kv_proj = HEADS, Projection()  # type: ignore[assignment]


def layers_of(number: int) -> list[Any]:
    return [SimpleNamespace(cross_attn=Attention()) for _ in range(number)]


def prepared(layers: Sequence[Any]) -> Conditions:
    conditions = Conditions(SPEC, WIDTH)
    conditions.prepare(layers, SLOTS, 4, torch.float32)
    return conditions


def test_one_product_for_all_layers_equals_one_for_each() -> None:
    """Weights and vectors are small integers, so that products are exact in any order of summation."""
    torch.manual_seed(0)
    layers, conditions = layers_of(3), Conditions(SPEC, WIDTH)
    for parameter in (*conditions.parameters(), *(each.cross_attn.kv_proj.weight for each in layers)):
        parameter.data = torch.randint(-4, 5, parameter.shape).float()
    conditions.prepare(layers, SLOTS, 4, torch.float32)
    conditions._positions.zero_()
    ids, vectors = torch.tensor([0, 2]), torch.randint(-4, 5, (ROWS - 2, 3)).float()
    conditions.store(0, ids, vectors)
    expected = [(each.cross_attn.keys[0].clone(), each.cross_attn.values[0].clone()) for each in layers]
    weights = [each.cross_attn.kv_proj.weight.clone() for each in layers]
    conditions._weights = stacked_weights([each.cross_attn for each in layers])
    assert conditions._weights is not None
    conditions.store(1, ids, vectors)
    for layer, (keys, values), weight in zip(layers, expected, weights, strict=True):
        attention = layer.cross_attn
        assert torch.equal(attention.keys[1], keys)
        assert torch.equal(attention.values[1], values)
        assert torch.equal(attention.kv_proj.weight, weight)
        assert attention.keys[0].is_contiguous()
        present = attention.kv_proj(vectors @ conditions.project.weight.T).unflatten(1, (2, HEADS, -1))
        assert torch.equal(values[:, :-2], present[:, 1].transpose(0, 1))
        assert torch.equal(values[:, -2:], attention.values[-1, :, -2:])
    conditions.store(1, ids, vectors[:0])
    assert torch.equal(layers[0].cross_attn.keys[1], layers[0].cross_attn.keys[-1])


@pytest.mark.parametrize("num_vectors", [0, 3, ROWS])
def test_new_request_has_few_launches_for_any_number_of_layers(num_vectors: int) -> None:
    """A product and four copies for each layer would take 80 launches for 16 layers."""
    found = []
    for number in (2, 16):
        with torch.device("meta"):
            conditions, vectors = prepared(layers_of(number)), torch.empty(num_vectors, 3)
            with Count() as counted:
                conditions.store(1, torch.zeros(2, dtype=torch.int64), vectors)
        assert counted.operators["mm"] == 1 + (num_vectors > 0)  # the vectors' projection, and all layers
        found.append(counted.operators.total())
    assert found[0] == found[1] <= 12, counted.operators


def test_quantized_layers_keep_their_own_products() -> None:
    layers = layers_of(2)
    layers[1].cross_attn.kv_proj.quant_method = object()
    before = layers[0].cross_attn.kv_proj.weight.data_ptr()
    assert stacked_weights([each.cross_attn for each in layers]) is None
    assert layers[0].cross_attn.kv_proj.weight.data_ptr() == before
