"""Conversion of MOSS-TTS-Realtime releases, and the refusal of others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config

from lab.releases.random_tensors import split_weights
from plugins.moss.lab.random_moss_realtime import (
    IDS,
    TOKENS,
    command,
    config,
    model_shapes,
    model_tensors,
    write_release,
)
from plugins.moss.tests.moss_realtime_release import convert_release
from stretto.convert.command import main as convert
from stretto.family.conversion import Tokenizer
from stretto.family.plugin import config_at, family_at
from stretto.weights.loading import check, shapes_read
from stretto.weights.pretrained import load_config
from stretto_moss.moss_tts_realtime.convert import UNUSED, Config, plan, vocabulary

QWEN3_1_7B = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
QWEN3_1_7B |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}


def test_tables_and_heads_are_joined(tmp_path: Path) -> None:
    checkpoint, found = convert_release(tmp_path), {name: torch.from_numpy(e) for name, e in model_tensors().items()}
    weights = load_file(checkpoint / "model-00001-of-00001.safetensors")
    tables = [found[f"embed_tokens.{number}.weight"] for number in range(4)]
    assert torch.equal(weights["model.embed_tokens.weight"], torch.cat(tables))
    heads = [found[f"local_transformer.local_lm_heads.{number}.weight"] for number in range(3)]
    assert torch.equal(weights["depth.first_head"], torch.cat([heads[0][:16], heads[0][18:]]))
    assert torch.equal(weights["depth.heads"], torch.stack([heads[1][:16], heads[2][:16]]))
    codes = [found[f"local_transformer.model.embed_tokens.{number}.weight"][:16] for number in range(2)]
    assert torch.equal(weights["depth.embed"], torch.cat(codes))
    assert "depth.project.weight" not in weights
    assert config_at(checkpoint)["architectures"] == ["StrettoQwen3ForCausalLM"]
    assert family_at(checkpoint).layout.vocab_size == len(weights["model.embed_tokens.weight"])


def test_sharded_release_is_converted(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    split_weights(release, 3)
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) == 0


def test_release_without_the_unused_table_is_converted(tmp_path: Path) -> None:
    """The authors' class has a table of the backbone that its loop does not read."""
    release = write_release(tmp_path / "release")
    from safetensors.torch import save_file

    weights = load_file(release / "model.safetensors")
    del weights[UNUSED]
    save_file(weights, release / "model.safetensors", {"format": "pt"})
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) == 0


def test_published_sizes_fit_the_converter() -> None:
    """Qwen3-1.7B with 16 codebooks of 1,024 codes, with the ids and defaults of the authors' class."""
    record = config("served") | {"language_config": QWEN3_1_7B}
    ids = {"<|im_start|>": 151644, "<|im_end|>": 151645, "<|audio_pad|>": 151654, "<|text_pad|>": 151655}
    record["local_config"] = {"model_type": "moss_tts_realtime_local_transformer"}
    del record["reference_audio_pad"], record["text_pad"]
    tokenizer = Tokenizer(Path(), 151669, {token_id: name for name, token_id in ids.items()})
    release = Config.read(record)
    known = vocabulary(release, tokenizer)
    parts = plan(release, known)
    shapes = shapes_read(parts)
    whole = record | {"local_config": QWEN3_1_7B | {"num_hidden_layers": 4}}
    assert shapes | {UNUSED: (151936, 2048)} == model_shapes(whole)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    assert check(parts, tensors, ()) == []
    written = {part.name: part.written for part in parts.values()}
    assert written["model.embed_tokens.weight"] == (168_368, 2048) == (known.layout.vocab_size, 2048)
    assert written["depth.first_head"] == (1025, 2048)
    assert written["depth.heads"] == (15, 1024, 2048)
    assert written["depth.embed"] == (15 * 1024, 2048)
    assert len(written) == 28 * 11 + 4 * 11 + 2 + 4


def test_release_is_read_as_saved_by_other_versions_of_transformers(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    record = config()
    del record["language_config"]["rope_parameters"], record["local_config"]["rope_parameters"]
    record["language_config"] |= {"rope_theta": 1e6, "rope_scaling": None, "torch_dtype": "bfloat16"}
    record["torch_dtype"] = record.pop("dtype")
    (release / "config.json").write_text(json.dumps(record))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) == 0
    written = load_config(Qwen3Config, tmp_path / "checkpoint")
    assert written.rope_parameters["rope_theta"] == 1e6
    depth = family_at(tmp_path / "checkpoint").depth
    assert depth is not None
    assert depth.rope == {"rope_type": "default", "rope_theta": 1e6}


def local(**changes: Any) -> dict[str, Any]:
    return {"local_config": config()["local_config"] | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "moss_tts_delay"}, "model_type: expected 'moss_tts_realtime', got 'moss_tts_delay'"),
        ({"rvq": 4} | local(rvq=4), "missing: embed_tokens.4.weight"),
        ({"rvq": 4}, "local_config.rvq: expected 4, got 3"),
        ({"audio_vocab_size": 18}, "audio_vocab_size: expected 19, got 18"),
        ({"text_pad": 9}, r"text_pad: expected 308 \(<\|text_pad\|>\), got 9"),
        (local(hidden_size=32), "local_config.hidden_size: expected 64, got 32"),
        (local(num_attention_heads=3), "local_config.num_attention_heads: expected a multiple of 2 "),
        (local(num_hidden_layers=2), "missing: local_transformer.model.layers.1"),
    ],
)
def test_other_releases_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(tmp_path / "release")
    (release / "config.json").write_text(json.dumps(config() | changes))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    assert re.search(message, capsys.readouterr().err)


def test_codec_with_fewer_codebooks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(tmp_path / "release")
    record_at = tmp_path / "codec" / "config.json"
    record = json.loads(record_at.read_text())
    record["quantizer_kwargs"]["num_quantizers"] = 2
    record_at.write_text(json.dumps(record))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    assert "expected 3 codebooks of 16 codes, got 2 of 16" in capsys.readouterr().err


def test_tokenizer_without_a_marker_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(tmp_path / "release")
    path = release / "tokenizer.json"
    record = json.loads(path.read_text())
    record["added_tokens"] = [token for token in record["added_tokens"] if token["content"] != TOKENS[-1]]
    path.write_text(json.dumps(record))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    assert f"without {TOKENS[-1]}" in capsys.readouterr().err
    assert IDS[TOKENS[-1]] == 308
