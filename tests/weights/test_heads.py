"""Sizes of attention heads that vLLM's layers can have."""

from typing import Any

import pytest
from transformers import Qwen2Config, Qwen3Config

from stretto.errors import CheckpointError
from stretto.weights.backbones import check_heads

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Qwen3Config, {"head_dim": 32}),
        (Qwen3Config, {"head_dim": 32, "hidden_size": 72, "num_attention_heads": 5, "num_key_value_heads": 1}),
        (Qwen2Config, {}),
        (Qwen2Config, {"head_dim": 16}),
    ],
)
def test_supported_sizes_are_accepted(kind: type, changes: dict[str, Any]) -> None:
    check_heads(kind(**SIZES | changes))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Qwen2Config, {"hidden_size": 66}, "hidden_size to be a multiple of num_attention_heads, got 66 and 4"),
        (Qwen2Config, {"head_dim": 32}, "head_dim: expected 16, got 32"),
        (Qwen3Config, {"head_dim": 0}, "head_dim: expected a positive number, got 0"),
        (Qwen3Config, {"head_dim": -2}, "head_dim: expected a positive number, got -2"),
        (Qwen3Config, {"num_key_value_heads": 3}, "to be a multiple of num_key_value_heads, got 4 and 3"),
        (Qwen3Config, {"num_key_value_heads": 0}, "to be a multiple of num_key_value_heads, got 4 and 0"),
    ],
)
def test_sizes_that_layers_cannot_have_are_refused(kind: type, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_heads(kind(**SIZES | changes))
