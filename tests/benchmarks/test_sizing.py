"""The arithmetic of docs/gpu_sizes.md, against Hugging Face's weights, torch's operation counts and the tables."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks.codec_operations import operations_of
from benchmarks.decoder_memory import CHUNKS
from benchmarks.sizing import (
    BACKBONES,
    CODEC_OF,
    CODECS,
    GPUS,
    depth_ms,
    needs_of,
    step_ms,
    stream_bytes,
    streams_in_memory,
    streams_in_time,
    tables,
)
from lab.releases.every_codec import every_codec
from stretto.codecs.base import Window
from stretto.decoder.memory import META, tensors_to_meta
from stretto.errors import CheckpointError
from stretto.families.csm.family import CsmVocabulary
from stretto.families.qwen3_tts.family import Qwen3TtsVocabulary
from stretto.machine.sizing import Backbone, Shape
from tests.benchmarks.sizes import assert_shape_of
from tests.tiers import by_night

pytestmark = pytest.mark.together("sizing")  # with test_fleet.py, for the cache of `needs_of`
DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu_sizes.md"
CLASSES: dict[str, tuple[type, type]] = {
    "Qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "Qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "OLMo 2": (Olmo2Config, Olmo2ForCausalLM),
    "SmolLM2": (LlamaConfig, LlamaForCausalLM),
    "Llama 3.2": (LlamaConfig, LlamaForCausalLM),
    "Moshi": (LlamaConfig, LlamaForCausalLM),
    "Kyutai": (LlamaConfig, LlamaForCausalLM),
}
PUBLISHED = {
    "CSM 1B (Llama 3.2)": (CsmVocabulary(), 16),
    "Qwen3-TTS 0.6B": (Qwen3TtsVocabulary(), 28),
    "Qwen3-TTS 1.7B": (Qwen3TtsVocabulary(), 28),
}


def hugging_face(name: str, shape: Shape, vocabulary: int, is_tied: bool) -> nn.Module:
    """Return a model of the given shape on the meta device."""
    config_class, model_class = next(value for each, value in CLASSES.items() if each in name)
    record: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": is_tied,
    }
    with torch.device("meta"):
        return model_class(config_class(**record))


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_sizing_weight_counts_match_hugging_face(backbone: Backbone) -> None:
    models = [hugging_face(backbone.name, backbone, backbone.vocabulary, backbone.tables == 1)]
    if (depth := backbone.depth) is not None:
        models.append(hugging_face(backbone.name, depth, depth.passes * depth.columns, False))
        models += [models[-1].model.layers] * (depth.sets - 1)
    if backbone.vector_rows:
        models += [nn.MultiheadAttention(backbone.hidden, backbone.heads, device="meta")] * backbone.layers
    counted = sum(parameter.numel() for model in models for parameter in model.parameters())
    assert backbone.weights == pytest.approx(counted, rel=1e-3)  # norms are left out


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizing_shapes_match_the_families(name: str) -> None:
    assert_shape_of(name, *PUBLISHED[name])


@pytest.mark.slow
def test_streams_per_gpu_are_limited_by_kv_cache_and_step_time() -> None:
    unguided = next(each for each in BACKBONES if "OpusLM 7B" in each.name)  # its codec is made quickly
    guided, (small, *_, large) = replace(unguided, is_guided=True), GPUS
    assert streams_in_memory(unguided, large) == pytest.approx(2 * streams_in_memory(guided, large), abs=1)
    assert streams_in_memory(replace(guided, layers=200), small) < 1
    memory, streams = round(1e9 * large.memory_gb), streams_in_memory(guided, large)
    whole = replace(needs_of(guided), cache=streams * stream_bytes(guided))
    whole.check(memory)
    with pytest.raises(CheckpointError, match="expected a GPU with at least"):
        replace(whole, cache=whole.cache + stream_bytes(guided)).check(memory)
    limit = streams_in_time(guided, large)
    assert step_ms(guided, large, limit) <= 16.0 < step_ms(guided, large, limit + 1)
    assert streams_in_time(guided, small) == 0  # its weights alone take longer to read


def test_small_model_step_time_is_bounded_by_the_host() -> None:
    opuslm = next(each for each in BACKBONES if "SmolLM2" in each.name)
    assert step_ms(replace(opuslm, layers=2), GPUS[-1], 1) == pytest.approx(2.339)


def test_step_time_includes_the_depth_transformer_passes() -> None:
    csm, fastest = next(each for each in BACKBONES if "CSM" in each.name), GPUS[-1]
    assert csm.depth is not None
    assert depth_ms(csm.depth, fastest, 1) == pytest.approx(31 * (4 * 0.036 + 0.022))  # of launches
    assert step_ms(csm, fastest, 1) > depth_ms(csm.depth, fastest, 1)
    assert step_ms(csm, GPUS[0], 1) > 31 * (4 * 0.036 + 0.022) + step_ms(replace(csm, depth=None), GPUS[0], 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mimi", *by_night(*(cost.name for cost in CODECS if cost.name != "mimi"))])
def test_codec_flop_counts_match_torch(name: str) -> None:
    (cost,) = [each for each in CODECS if each.name == name]
    codec = every_codec(name, is_narrow=False)
    assert isinstance(codec, nn.Module)
    assert list(tensors_to_meta(codec))
    spec = codec.spec
    left, right = spec.left_frames if cost.history is None else cost.history, spec.right_frames
    device = torch.device("cpu") if spec.reads_on_host else META
    for frames, gflop in cost.gflop.items():
        codes = torch.zeros(1, spec.num_codebooks, left + frames + right, dtype=torch.int64, device=device)
        window = Window(codes, left, right, torch.full((1,), left, device=device), codec.initial_state(1))
        seconds = frames / spec.frame_rate
        total, convolved = operations_of(codec, window)
        assert total / seconds == pytest.approx(gflop, abs=0.05)
        # CosyVoice 3, the one with a history, also has convolutions in groups, which tensor cores do not compute.
        if frames == cost.steady_frames and cost.history is None:
            assert convolved / seconds == pytest.approx(cost.convolved, abs=0.08)


def test_codecs_are_counted_in_the_chunks_of_their_decoders() -> None:
    assert set(CODEC_OF.values()) == {cost.name for cost in CODECS}
    for cost in CODECS:
        if cost.history is None:
            assert tuple(cost.gflop) == CHUNKS[cost.name][::-1]


@pytest.mark.nightly  # it makes all codecs
def test_document_contains_the_generated_tables() -> None:
    text = DOCUMENT.read_text()
    for table in tables().split("\n\n"):
        assert table in text
