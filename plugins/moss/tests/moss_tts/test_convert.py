"""Conversion of MOSS-TTS releases, and the refusal of others."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config

from lab.releases.random_tensors import split_weights
from plugins.moss.lab import random_moss, random_moss_local, random_moss_realtime
from plugins.moss.lab.random_moss import IDS, command, config, model_shapes, model_tensors, write_release
from plugins.moss.tests.moss_release import convert_release
from stretto.convert.command import main as convert
from stretto.family.plugin import config_at, family_at
from stretto.weights.loading import check
from stretto.weights.pretrained import load_config
from stretto_moss.moss_tts.convert import plan, read_config

QWEN3_8B = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
QWEN3_8B |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 155648, "max_position_embeddings": 40960}


def test_tables_and_heads_are_joined(tmp_path: Path) -> None:
    checkpoint, found = convert_release(tmp_path), {name: torch.from_numpy(e) for name, e in model_tensors().items()}
    weights = load_file(checkpoint / "model-00001-of-00001.safetensors")
    tables = [found["language_model.embed_tokens.weight"], *(found[f"emb_ext.{number}.weight"] for number in range(4))]
    assert torch.equal(weights["model.embed_tokens.weight"], torch.cat(tables))
    ends = [IDS[f"audio_assistant_{name}_slot_token_id"] for name in ("gen", "delay")]
    heads = [found["lm_heads.0.weight"][ends], *(found[f"lm_heads.{number}.weight"][:-1] for number in range(1, 5))]
    assert torch.equal(weights["audio_head.weight"], torch.cat(heads))
    assert "lm_head.weight" not in weights
    assert config_at(checkpoint)["architectures"] == ["StrettoQwen3ForCausalLM"]
    assert family_at(checkpoint).layout.vocab_size == len(weights["model.embed_tokens.weight"])


def test_sharded_release_is_converted(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    split_weights(release, 3)
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) == 0


def test_published_sizes_fit_the_converter() -> None:
    """Qwen3-8B with 155,648 text ids, and 32 codebooks of 1,024 codes, as the authors' class names its tensors."""
    record = config("served") | {"language_config": QWEN3_8B}
    for name in IDS:
        del record[name]
    backbone, known = read_config(record)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in model_shapes(record).items()}
    parts = plan(backbone, known)
    assert check(parts, tensors, ()) == []
    written = {part.name: part.written for part in parts.values()}
    assert written["model.embed_tokens.weight"] == (188_448, 4096) == (known.layout.vocab_size, 4096)
    assert written["audio_head.weight"] == (2 + 32 * 1024, 4096)
    assert len(written) == 36 * 11 + 3
    assert (known.slot, known.delay, known.audio_end) == (151656, 151662, 151653)


def test_release_is_read_as_saved_by_other_versions_of_transformers(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    record = config()
    del record["language_config"]["rope_parameters"]
    record["language_config"] |= {"rope_theta": 1e6, "rope_scaling": None, "torch_dtype": "bfloat16"}
    record["torch_dtype"] = record.pop("dtype")
    (release / "config.json").write_text(json.dumps(record))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) == 0
    written = load_config(Qwen3Config, tmp_path / "checkpoint")
    assert written.rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize("moss", [random_moss, random_moss_local, random_moss_realtime])
def test_heads_with_a_size_of_their_own_need_not_divide_the_hidden_size(
    moss: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backbone has five heads of 32 features, of which one has keys, in a width of 72."""
    num_codebooks, num_codes, backbone, *depth = moss.KINDS["small"]
    backbone = backbone | {"hidden_size": 72, "num_attention_heads": 5, "num_key_value_heads": 1}
    depth = [sizes | {"hidden_size": 72} if isinstance(sizes, dict) else sizes for sizes in depth]
    monkeypatch.setitem(moss.KINDS, "small", (num_codebooks, num_codes, backbone, *depth))
    release = moss.write_release(tmp_path / "release")
    assert convert([*moss.command(release), "--out", str(tmp_path / "checkpoint")]) == 0
    assert load_config(Qwen3Config, tmp_path / "checkpoint").num_attention_heads == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "moss_tts_nano"}, "MOSS-TTS-Nano is not supported, only MOSS-TTS v1.5"),
        ({"local_num_layers": 4}, "MOSS-TTS-Local-Transformer 1.0 is not supported"),
        ({"model_type": "moss_tts_realtime"}, "model_type: expected 'moss_tts_delay', got 'moss_tts_realtime'"),
        ({"n_vq": 5}, "missing: emb_ext.4.weight"),
        ({"audio_pad_code": 0}, "audio_pad_code: expected 16, got 0"),
        ({"language_config": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}}, "rope_scaling: expected"),
        ({"audio_end_token_id": 320}, r"audio_end_token_id: expected an id in \[0, 320\), got 320"),
        ({"audio_end_token_id": IDS["audio_start_token_id"]}, "8 different ids of text tokens"),
    ],
)
def test_other_releases_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(tmp_path / "release")
    (release / "config.json").write_text(json.dumps(config() | changes))
    assert convert([*command(release), "--out", str(tmp_path / "checkpoint")]) != 0
    assert re.search(message, capsys.readouterr().err)


def test_codec_of_another_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(tmp_path / "release")
    write_release(tmp_path / "other" / "release", "deep")
    words = command(release)
    words[-1] = str(tmp_path / "other" / "codec")
    assert convert([*words, "--out", str(tmp_path / "checkpoint")]) != 0
    assert "expected 4 codebooks of 16 codes, got 6 of 24" in capsys.readouterr().err
