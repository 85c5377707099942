"""The numbers of the real releases, without their files: tensors on the meta device, token lists made by rule."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import XcodecConfig, XcodecModel

from benchmarks.checkpoints.random_espnet import token_list, write_tokenizer
from stretto.convert.release import read_tokenizer
from stretto.errors import CheckpointError
from stretto.families.bagpiper import convert as bagpiper
from stretto.families.bagpiper.family import BagpiperVocabulary
from stretto.families.conversion import Tokenizer
from stretto.families.opuslm import convert as opuslm
from stretto.families.opuslm.family import OpusVocabulary
from stretto.families.plugin import read_family
from stretto.weights.backbones import PUBLISHED, config_of, read_backbone, shapes
from stretto.weights.loading import shapes_of

QWEN3, OLMO2, SMOLLM2 = "Qwen/Qwen3-8B-Base", "allenai/OLMo-2-1124-7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"
BAGPIPER_YAML = {
    "multimodal_io": {
        "text": {"tokenizer_name": QWEN3},
        "discrete_audio": {"codec_choice": "Xcodec", "ssl_choice": None, "delay_interleave": True},
        "continuous_audio": {"encoder_hf_model_tag": "Qwen/Qwen3-Omni-30B-A3B-Instruct"},
    }
}


def language(tag: str, vocab_size: int) -> dict[str, tuple[int, ...]]:
    return shapes(config_of(read_backbone(tag, None, Path("nowhere")), vocab_size, "bfloat16"))


def test_bagpiper_s_vocabulary_and_tensors() -> None:
    """1382 tensors: 396 of the layers, 525 of the tower, 454 of the codec, six others and the loss weights."""
    tensors = {
        "model.embed_tokens.weight": torch.empty(160392, 4096, device="meta"),
        bagpiper.CODEBOOK: torch.empty(1024, 1024, device="meta"),
    }
    vocabulary = bagpiper.vocabulary(BAGPIPER_YAML, tensors, Tokenizer(Path("qwen"), 151669), None)
    assert vocabulary == BagpiperVocabulary()
    tower = bagpiper.tower_config(BAGPIPER_YAML, None, {"do_normalize": True})
    plan = bagpiper.plan(language(QWEN3, 160392), 4096, tower)
    codec = shapes_of(XcodecModel, XcodecConfig())
    assert codec["quantizer.quantizers.0.codebook.embed"] == (1024, 1024)
    assert len(plan) + len(codec) + len({"vocab_weight"}) == 1382
    written = {part.name: part.written for part in plan.values()}
    assert written["lm_head.weight"] == (160392, 4096)
    assert written["model.layers.35.self_attn.k_proj.weight"] == (1024, 4096)
    assert written["model.layers.0.self_attn.q_norm.weight"] == (128,)
    assert written["stream_bias.weight"] == (8, 4096)
    assert written["adaptor.weight"] == (4096, 2048)
    assert written["audio_tower.layers.31.fc1.weight"] == (5120, 1280)
    assert written["audio_tower.proj2.weight"] == (2048, 1280)
    assert (tower["n_window"], tower["n_window_infer"]) == (50, 800)


@pytest.mark.parametrize(
    ("tag", "vocabulary", "num_tensors"),
    [
        (OLMO2, OpusVocabulary(), 32 * 11 + 4),
        (SMOLLM2, OpusVocabulary(vocab_size=62670, text=(13448, 62600)), 220),
    ],
)
def test_opuslm_s_vocabularies_and_tensors(
    tag: str, vocabulary: OpusVocabulary, num_tensors: int, tmp_path: Path
) -> None:
    """220 of the dialogue model's 221 tensors are served."""
    record = {
        "token_list": token_list(vocabulary, write_tokenizer(tmp_path, 300)),
        "token_bias": {
            "special_token": [0, 256],
            "ssl": [256, 5256],
            "codec": [5256, 13448],
            "text_bpe": vocabulary.text,
        },
        "codec_token_in_use": 9,
    }
    found = opuslm.vocabulary(record, read_tokenizer(tmp_path), is_dialogue=True)
    assert found == vocabulary
    assert found.tasks["audio_dialogue"] == 89
    hidden = PUBLISHED[tag]["hidden_size"]
    heads = {opuslm.HEAD_EMBEDDINGS: torch.empty(12, hidden, device="meta")}
    plan = opuslm.plan(language(tag, vocabulary.vocab_size), hidden, heads)
    assert len(plan) == num_tensors
    assert plan["corelm.emb.weight"].written == (vocabulary.vocab_size, hidden)
    assert plan[opuslm.HEAD_EMBEDDINGS].stored == (12, hidden)
    assert plan[opuslm.HEAD_EMBEDDINGS].written == (9, hidden)
    if tag == OLMO2:
        assert plan["corelm.decoders.model.layers.31.self_attn.q_norm.weight"].written == (4096,)


@pytest.mark.parametrize(
    ("tag", "eps", "theta", "heads", "key_value_heads"),
    [(QWEN3, 1e-6, 1e6, 32, 8), (OLMO2, 1e-6, 5e5, 32, 32), (SMOLLM2, 1e-5, 130000.0, 32, 32)],
)
def test_the_rest_is_the_backbone_s_own(tag: str, eps: float, theta: float, heads: int, key_value_heads: int) -> None:
    record = read_backbone(tag, None, Path("nowhere"))
    assert (record["rms_norm_eps"], record["rope_theta"]) == (eps, theta)
    assert (record["num_attention_heads"], record["num_key_value_heads"]) == (heads, key_value_heads)


def test_a_backbone_that_shares_its_table_with_its_head_gets_a_head_of_its_own() -> None:
    """SmolLM2 shares them; what ESPnet makes of it does not."""
    record = config_of(read_backbone(SMOLLM2, None, Path("nowhere")) | {"tie_word_embeddings": True}, 62670, "bfloat16")
    assert record["tie_word_embeddings"] is False


def test_a_backbone_that_nobody_knows_needs_its_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"backbone small/x: expected one of .*, or --backbone with its config.json"
    ):
        read_backbone("small/x", None, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(
        CheckpointError, match=r"backbone small/x: expected one of \['llama', 'olmo2', 'qwen2', 'qwen3'\], got 'gpt2'"
    ):
        read_backbone("small/x", None, tmp_path)


def test_an_encoder_that_nobody_knows_needs_its_numbers() -> None:
    record: dict[str, Any] = {"multimodal_io": {"continuous_audio": {"encoder_hf_model_tag": "Qwen/Qwen2.5-Omni-7B"}}}
    with pytest.raises(CheckpointError, match="name the file with its parameters with --audio-config"):
        bagpiper.tower_config(record, None, {})


def test_the_public_config_of_qwen3_omni_can_be_given(tmp_path: Path) -> None:
    nested = '{"thinker_config": {"audio_config": {"d_model": 1280, "n_window": 50, "output_dim": 2048, "x": 1}}}'
    (tmp_path / "config.json").write_text(nested)
    found = bagpiper.tower_config({}, tmp_path, {"n_window": 100})
    assert found == {"model_type": "qwen3_omni_moe_audio_encoder", "d_model": 1280, "output_dim": 2048, "n_window": 100}


def test_a_tokenizer_that_is_too_large_is_refused() -> None:
    tensors = {
        "model.embed_tokens.weight": torch.empty(160392, 4096, device="meta"),
        bagpiper.CODEBOOK: torch.empty(1024, 1024, device="meta"),
    }
    with pytest.raises(CheckpointError, match="expected a tokenizer of at most 151936 tokens"):
        bagpiper.vocabulary(BAGPIPER_YAML, tensors, Tokenizer(Path("other"), 200000), None)


def test_what_the_converter_writes_is_a_family(tmp_path: Path) -> None:
    for name, vocabulary in (("bagpiper", BagpiperVocabulary()), ("opuslm_dialogue", OpusVocabulary())):
        family = read_family({"speech_family": name, "speech_vocabulary": vocabulary.to_record()})
        assert family.layout == vocabulary.layout
