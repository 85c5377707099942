"""Conversion of Higgs Audio: mismatches give a clear one-line message, and nothing is written."""

from pathlib import Path

import pytest
import torch

from plugins.higgs_audio.lab.random_higgs_audio import HiggsAudioRelease, make_model, write_release
from stretto.weights.loading import open_tensors
from tests.refused_conversion import Edit, Refuses, edited

MODEL = "model.safetensors"


@pytest.fixture
def release(tmp_path: Path) -> HiggsAudioRelease:
    return write_release(tmp_path / "release", make_model(4, num_codes=16))


def test_training_only_tensors_are_omitted(release: HiggsAudioRelease, tmp_path: Path) -> None:
    before = open_tensors(release.convert(tmp_path / "before"))
    with edited(release.folder / MODEL) as tensors:
        tensors["text_lm_head.weight"] = torch.ones(330, 64)
    after = open_tensors(release.convert(tmp_path / "after"))
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (
            "config.json",
            lambda record: record.update(model_type="higgs_audio"),
            "model_type: expected 'higgs_audio_v2'",
        ),
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
        (
            MODEL,
            lambda t: t.pop("model.embed_audio_tokens.embed_audio_tokens.weight"),
            "missing: model.embed_audio_tokens",
        ),
        (
            MODEL,
            lambda t: t.pop("model.layers.1.audio_mlp.up_proj.weight"),
            "missing: model.layers.1.audio_mlp.up_proj",
        ),
        (MODEL, lambda t: t.update(more=torch.ones(1)), "unknown: more"),
        (MODEL, lambda t: t.update({"audio_codebook_embeddings.weight": torch.ones(1)}), "got Boson AI's format"),
    ],
)
def test_error_names_mismatched_checkpoint_contents(
    release: HiggsAudioRelease, file: str, edit: Edit, message: str, tmp_path: Path, refuses: Refuses
) -> None:
    with edited(release.folder / file) as content:
        edit(content)
    refuses([*release.command, "--out", str(tmp_path / "out")], message)
