"""Higgs Audio's release, converted: what does not fit is one clear line, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.checkpoints.random_higgs_audio import HiggsAudioRelease, make_model, write_release
from stretto.weights.loading import open_tensors
from tests.refused_conversion import refused

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def release(tmp_path: Path) -> HiggsAudioRelease:
    return write_release(tmp_path / "release", make_model(4, num_codes=16))


def refusal(release: HiggsAudioRelease, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a conversion ends."""
    return refused([*release.command, "--out", str(out)], out, capsys)


def change(release: HiggsAudioRelease, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(release.folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, release.folder / "model.safetensors")


def test_what_only_training_needs_is_left_out(release: HiggsAudioRelease, tmp_path: Path) -> None:
    before = open_tensors(release.convert(tmp_path / "before"))
    change(release, lambda tensors: tensors.update({"text_lm_head.weight": torch.ones(330, 64)}))
    after = open_tensors(release.convert(tmp_path / "after"))
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("config.json", lambda record: record.update(model_type="higgs_audio"), "expected model_type 'higgs_audio_v2'"),
        (
            "config.json",
            lambda record: record.update(attention_bias=True),
            "attention_bias: expected False, got True",
        ),
        ("config.json", lambda record: record.update(rms_norm_eps="small"), "invalid parameters for higgs_audio_v2"),
        ("config.json", lambda record: record.update(audio_stream_eos_id=16), "the last two ids"),
        ("config.json", lambda record: record.update(eos_token_id=[5, 6]), "expected integers as eos_token_id"),
        ("config.json", lambda record: record.update(intermediate_size=32), "tensors do not match: wrong shape"),
        (
            "config.json",
            lambda record: record.update(num_codebooks=5),
            "embed_audio_tokens.weight [72, 64] instead of [90",
        ),
        ("tokenizer.json", lambda record: record["added_tokens"].pop(5), "without <|end_header_id|>"),
    ],
)
def test_numbers_that_do_not_fit_are_named(
    release: HiggsAudioRelease,
    file: str,
    edit: Callable[[dict[str, Any]], object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = release.folder / file
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    assert message in refusal(release, tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.embed_audio_tokens.embed_audio_tokens.weight"), "missing: model.embed_audio_tokens"),
        (lambda t: t.pop("model.layers.1.audio_mlp.up_proj.weight"), "missing: model.layers.1.audio_mlp.up_proj"),
        (lambda t: t.update(more=torch.ones(1)), "unknown: more"),
        (lambda t: t.update({"audio_codebook_embeddings.weight": torch.ones(1)}), "got Boson AI's format"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    release: HiggsAudioRelease,
    edit: Callable[[Tensors], object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(release, edit)
    assert message in refusal(release, tmp_path / "out", capsys)
