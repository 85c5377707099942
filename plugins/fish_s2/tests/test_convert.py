"""Conversion of Fish Audio S2 releases, and the refusal of others."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lab.releases.random_tensors import split_weights
from plugins.fish_s2.lab.random_fish_s2 import (
    IDS,
    MARKERS,
    command,
    config,
    model_shapes,
    model_tensors,
    write_release,
)
from plugins.fish_s2.lab.random_fish_s2_codec import write_codec
from plugins.fish_s2.tests.fish_s2_release import convert_release
from stretto.convert.command import main as convert
from stretto.family.conversion import Tokenizer
from stretto.family.plugin import config_at, family_at
from stretto.weights.loading import check, shapes_read
from stretto_fish_s2.convert import CODES, plan, read_config
from stretto_fish_s2.family import FishVocabulary, fish_s2

LAYERS = {"intermediate_size": 9728, "n_head": 32, "n_local_heads": 8, "head_dim": 128, "dim": 2560}


def test_frames_are_folded_into_the_table(tmp_path: Path) -> None:
    checkpoint, found = convert_release(tmp_path), {name: torch.from_numpy(e) for name, e in model_tensors().items()}
    weights = load_file(checkpoint / "model-00001-of-00001.safetensors")
    text, codes = found["text_model.model.embeddings.weight"], found[CODES].view(5, 64, 64)
    first = IDS["<|semantic:0|>"]
    table = weights["model.embed_tokens.weight"]
    assert torch.equal(table[:first], text[:first])
    assert torch.equal(table[first + 64 : len(text)], text[first + 64 :])
    expected = torch.cat([text[first : first + 64] + codes[0], *codes[1:]]) / math.sqrt(6)  # of 5 codes and a token
    torch.testing.assert_close(torch.cat([table[first : first + 64], table[len(text) :]]), expected)
    assert torch.equal(weights["depth.first_head"][:-1], text[first : first + 64])
    assert torch.equal(weights["depth.first_head"][-1], text[IDS["<|im_end|>"]])
    fast, head = found["audio_decoder.embeddings.weight"], found["audio_decoder.output.weight"]
    assert torch.equal(weights["depth.embed"], torch.cat([fast] * 4))
    assert torch.equal(weights["depth.heads"], torch.stack([head] * 4))
    assert config_at(checkpoint)["architectures"] == ["StrettoQwen3ForCausalLM"]
    assert family_at(checkpoint).layout.vocab_size == len(table)


def test_sharded_release_is_converted(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    split_weights(release, 2)
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) == 0


def test_published_sizes_fit_the_converter() -> None:
    """The published config.json has 358 tensors in its index, and the ids of these tokens."""
    record = config("deep")
    record["text_config"] |= LAYERS | {"n_layer": 36, "vocab_size": 155776, "max_seq_len": 32768}
    record["audio_decoder_config"] |= LAYERS | {"n_layer": 4, "text_dim": 2560, "vocab_size": 4096}
    record |= {"eos_token_id": 151645, "pad_token_id": 151669, "audio_pad_token_id": 151677}
    record |= {"semantic_start_token_id": 151678, "semantic_end_token_id": 155773}
    ids = {"<|im_start|>": 151644, "<|im_end|>": 151645, "<|pad|>": 151669, "<|voice|>": 151673}
    ids |= {f"<|semantic:{code}|>": 151678 + code for code in range(4096)}
    layers, known = read_config(record, Tokenizer(Path(), 155774, {token: name for name, token in ids.items()}))
    assert known == FishVocabulary()
    assert fish_s2(known) == fish_s2(FishVocabulary())
    parts = plan(layers, known)
    shapes = shapes_read(parts)
    assert len(shapes) == 358
    assert shapes == model_shapes(record)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    assert check(parts, tensors, ()) == []
    written = {each.name: each.written for part in parts.values() for each in (part, *part.also)}
    assert written["model.embed_tokens.weight"] == (155776 + 9 * 4096, 2560) == (known.layout.vocab_size, 2560)
    assert written["depth.first_head"] == (4097, 2560)
    assert written["depth.heads"] == (9, 4096, 2560)
    assert written["depth.embed"] == (9 * 4096, 2560)
    assert len(written) == 36 * 11 + 4 * 9 + 2 + 4


def text(**changes: Any) -> dict[str, Any]:
    return {"text_config": config()["text_config"] | changes}


def fast(**changes: Any) -> dict[str, Any]:
    return {"audio_decoder_config": config()["audio_decoder_config"] | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dual_ar"}, "model_type: expected 'fish_qwen3_omni', got 'dual_ar'"),
        ({"text_config": None}, "text_config: expected an object, got None"),
        ({"audio_decoder_config": [1]}, "audio_decoder_config: expected an object"),
        (text(n_head=3), r"text_config.n_head: expected a multiple of 2 \(n_local_heads\), got 3"),
        (text(n_layer=3), "missing: text_model.model.layers.2"),
        (text(vocab_size=300), "expected a tokenizer of at most 300 tokens"),
        (fast(dim=32), "audio_decoder_config.dim: expected 64, got 32"),
        (fast(text_dim=32), "audio_decoder_config.text_dim: expected 64, got 32"),
        (fast(rope_base=10000), "audio_decoder_config.rope_base: expected 1000000.0, got 10000.0"),
        (fast(norm_eps=1e-5), "audio_decoder_config.norm_eps: expected 1e-06, got 1e-05"),
        (fast(num_codebooks=4), "expected 4 codebooks, the first of 64 codes, as in config.json, got 5 and 64"),
        (fast(vocab_size=70), r"without <\|semantic:69\|>"),
        ({"eos_token_id": 9}, r"eos_token_id: expected 306 \(<\|im_end\|>\), got 9"),
        ({"semantic_end_token_id": 9}, r"semantic_end_token_id: expected 373 \(<\|semantic:63\|>\), got 9"),
    ],
)
def test_other_releases_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(tmp_path / "release")
    (release / "config.json").write_text(json.dumps(config() | changes))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (MARKERS[5], r"without <\|voice\|>"),
        ("<|semantic:63|>", r"without <\|semantic:63\|>"),
    ],
)
def test_tokenizer_without_a_token_is_refused(
    tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(tmp_path / "release")
    path = release / "tokenizer.json"
    record = json.loads(path.read_text())
    record["added_tokens"] = [token for token in record["added_tokens"] if token["content"] != name]
    path.write_text(json.dumps(record))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    assert re.search(message, capsys.readouterr().err)


def test_semantic_tokens_in_another_order_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(tmp_path / "release")
    path = release / "tokenizer.json"
    swapped = {"<|semantic:62|>": "<|semantic:63|>", "<|semantic:63|>": "<|semantic:62|>"}
    record = json.loads(path.read_text())
    for token in record["added_tokens"]:
        token["content"] = swapped.get(token["content"], token["content"])
    path.write_text(json.dumps(record))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    assert "expected <|semantic:63|> with id 373, got 372" in capsys.readouterr().err


def test_codec_with_other_codebooks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_codec(write_release(tmp_path / "release"), "small")
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    expected = "expected 5 codebooks, the first of 64 codes, as in config.json, got 10 and 64"
    assert expected in capsys.readouterr().err
