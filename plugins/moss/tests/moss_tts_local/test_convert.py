"""Conversion of MOSS-TTS-Local releases, and the refusal of others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab.releases.random_tensors import split_weights
from plugins.moss.lab.random_moss_local import IDS, command, config, model_shapes, model_tensors, write_release
from plugins.moss.tests.moss_local_release import convert_release
from stretto.convert.command import main as convert
from stretto.family.plugin import family_at
from stretto.weights.loading import check
from stretto_moss.moss_tts_local.convert import COPIES, TEXT_HEAD, Config, plan, vocabulary

QWEN3_4B = {"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
QWEN3_4B |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
GPT2 = {"n_embd": 2560, "n_head": 32, "n_inner": 9728, "n_layer": 1, "activation_function": "silu"}
GPT2 |= {"position_embedding_type": "rope", "layer_norm_epsilon": 1e-6}


def test_tables_and_heads_are_joined(tmp_path: Path) -> None:
    checkpoint, found = convert_release(tmp_path), {name: torch.from_numpy(e) for name, e in model_tensors().items()}
    weights = load_file(checkpoint / "model-00001-of-00001.safetensors")
    tables = [found[f"audio_embeddings.{number}.weight"] for number in range(4)]
    assert torch.equal(
        weights["model.embed_tokens.weight"], torch.cat([found["transformer.embed_tokens.weight"], *tables])
    )
    assert torch.equal(weights["depth.heads"], torch.stack(tables))
    assert torch.equal(weights["depth.embed"], torch.cat([torch.zeros(1, 64), *tables[:3]]))
    assert torch.equal(weights["depth.first_head"], found["local_text_lm_head.weight"])
    value = found["local_transformer.h.0.attn.c_attn.bias"][128:]
    assert torch.equal(weights["depth.layers.0.v_proj.bias"], value)
    assert family_at(checkpoint).layout.vocab_size == len(weights["model.embed_tokens.weight"])


def test_sharded_release_is_converted(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    split_weights(release, 3)
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) == 0


def test_release_without_copies_and_with_the_whole_head_is_converted(tmp_path: Path) -> None:
    """Then the choice between a slot and the end is made by two rows of the table."""
    release = write_release(tmp_path / "release")
    (release / "config.json").write_text(json.dumps(config() | {"local_text_head_mode": "full_vocab"}))
    weights = {name: each for name, each in load_file(release / "model.safetensors").items() if "lm_head" not in name}
    save_file(weights, release / "model.safetensors", {"format": "pt"})
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) == 0
    written = load_file(tmp_path / "checkpoint" / "model-00001-of-00001.safetensors")
    ids = [IDS["audio_assistant_slot_token_id"], IDS["audio_end_token_id"]]
    assert torch.equal(written["depth.first_head"], weights["transformer.embed_tokens.weight"][ids])


def test_published_sizes_fit_the_converter() -> None:
    """Qwen3-4B with 12 codebooks of 1,024 codes: 438 tensors, as a published file is known to have."""
    record = config("served") | {"qwen3_config": QWEN3_4B, "language_config": QWEN3_4B, "gpt2_config": GPT2}
    record["local_transformer_layers"] = 1
    for name in IDS:
        del record[name]
    release = Config.read(record)
    known = vocabulary(release)
    parts = plan(release, known)
    whole = model_shapes(record)
    assert len(whole) == 438
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in whole.items()}
    unused = check(parts, tensors, (TEXT_HEAD, COPIES))
    assert sorted(unused) == sorted([TEXT_HEAD, *(f"{COPIES}{number}.weight" for number in range(12))])
    written = {part.name: part.written for part in parts.values()}
    assert written["model.embed_tokens.weight"] == (164_224, 2560) == (known.layout.vocab_size, 2560)
    assert written["depth.heads"] == (12, 1024, 2560)
    assert written["depth.embed"] == (1 + 11 * 1024, 2560)
    assert (known.slot, known.audio_end, known.depth.head_dim) == (151656, 151670, 80)


def gpt2(**changes: Any) -> dict[str, Any]:
    return {"gpt2_config": config()["gpt2_config"] | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "moss_tts_delay"}, "model_type: expected 'moss_tts_local', got 'moss_tts_delay'"),
        ({"n_vq": 5}, "audio_codebook_sizes: expected 5 times 16"),
        ({"n_vq": 5, "audio_codebook_sizes": None}, "missing: audio_embeddings.4.weight"),
        ({"audio_end_token_id": 320}, r"audio_end_token_id: expected an id in \[0, 320\), got 320"),
        ({"audio_end_token_id": IDS["audio_start_token_id"]}, "7 different ids of text tokens"),
        ({"local_transformer_layers": 2}, "missing: local_transformer.h.1"),
        (gpt2(n_embd=32), "gpt2_config.n_embd: expected 64, got 32"),
        (gpt2(n_head=3), "gpt2_config.n_head: expected heads of an even size, got 64 / 3"),
    ],
)
def test_other_releases_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(tmp_path / "release")
    (release / "config.json").write_text(json.dumps(config() | changes))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    assert re.search(message, capsys.readouterr().err)


def test_head_that_is_no_copy_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(tmp_path / "release")
    weights = load_file(release / "model.safetensors")
    weights["audio_lm_heads.1.weight"][0, 0] += 1
    save_file(weights, release / "model.safetensors", {"format": "pt"})
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    assert "audio_lm_heads.1.weight: expected a copy of audio_embeddings.1.weight" in capsys.readouterr().err
