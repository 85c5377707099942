"""The arithmetic of docs/gpu.md: weights as Hugging Face counts them, operations as torch does, tables as printed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from benchmarks.codecs import codecs
from benchmarks.sizing import BACKBONES, CODECS, GPUS, Backbone, step_ms, streams_in_memory, streams_in_time, tables
from stretto.codec.base import Window

DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"
CLASSES: dict[str, tuple[type, type]] = {
    "Qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "OLMo 2": (Olmo2Config, Olmo2ForCausalLM),
    "SmolLM2": (LlamaConfig, LlamaForCausalLM),
}


def hugging_face(backbone: Backbone) -> nn.Module:
    """The model of that shape, without its numbers."""
    config_class, model_class = next(value for name, value in CLASSES.items() if name in backbone.name)
    record: dict[str, Any] = {
        "hidden_size": backbone.hidden,
        "num_hidden_layers": backbone.layers,
        "num_attention_heads": backbone.heads,
        "num_key_value_heads": backbone.kv_heads,
        "head_dim": backbone.head_dim,
        "intermediate_size": backbone.inner,
        "vocab_size": backbone.vocabulary,
        "tie_word_embeddings": False,
    }
    with torch.device("meta"):
        return model_class(config_class(**record))


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_weights_are_those_that_hugging_face_s_class_has(backbone: Backbone) -> None:
    counted = sum(parameter.numel() for parameter in hugging_face(backbone).parameters())
    assert backbone.weights == pytest.approx(counted, rel=1e-3)  # norms are left out


def test_as_many_streams_fit_as_their_kv_cache_and_their_time_allow() -> None:
    guided, unguided, *_ = BACKBONES
    small, *_, large = GPUS
    assert streams_in_memory(unguided, large) == pytest.approx(2 * streams_in_memory(guided, large), abs=1)
    assert streams_in_memory(replace(guided, layers=200), small) < 1
    limit = streams_in_time(guided, large)
    assert step_ms(guided, large, limit) <= 16.0 < step_ms(guided, large, limit + 1)
    assert streams_in_time(guided, small) == 0  # its weights alone take longer to read


def test_the_host_bounds_a_step_of_a_small_model() -> None:
    tiny = replace(BACKBONES[-1], layers=2)
    assert step_ms(tiny, GPUS[-1], 1) == pytest.approx(1.019)


@pytest.mark.slow
@pytest.mark.parametrize("cost", CODECS, ids=lambda cost: cost.name)
@pytest.mark.parametrize("frames", [25, 8])
def test_a_codec_s_operations_are_those_that_torch_counts(cost: Any, frames: int) -> None:
    [(_, _, codec)] = codecs([cost.name.split()[0]], None, is_wide=True)
    assert isinstance(codec, nn.Module)
    codec.to("meta")
    spec = codec.spec
    left, right = spec.left_frames, spec.right_frames
    codes = torch.zeros(1, spec.num_codebooks, left + frames + right, dtype=torch.int64, device="meta")
    window = Window(codes, left, right, torch.zeros(1, dtype=torch.int64, device="meta"), codec.initial_state(1))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        codec.decode(window)
    assert counter.get_total_flops() / 1e9 / (frames / spec.frame_rate) == pytest.approx(cost.gflop[frames], abs=0.05)


def test_the_document_has_the_tables_as_they_are_printed() -> None:
    text = DOCUMENT.read_text()
    for table in tables().split("\n\n"):
        assert table in text
