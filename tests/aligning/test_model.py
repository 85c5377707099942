"""The CTC model computes the same emissions as transformers for both layouts, and refuses files that do not match."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from stretto.aligning.align import CannotAlign, times
from stretto.aligning.model import FILES, Aligner
from stretto.convert.command import main
from tests.aligning.ctc_release import write_release

PCM = (np.sin(np.arange(16_000) ** 1.4 / 200) / 3).astype(np.float32)


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("english"))


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("multilingual"), is_multilingual=True)


@pytest.mark.parametrize("layout", ["english", "multilingual"])
def test_aligner_emissions_match_transformers(layout: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    aligner = Aligner(folder)
    extracted = Wav2Vec2FeatureExtractor.from_pretrained(folder)(PCM, sampling_rate=16_000, return_tensors="pt")
    model: Any = Wav2Vec2ForCTC.from_pretrained(folder)
    with torch.inference_mode():
        expected = model.eval()(extracted.input_values).logits[0].log_softmax(-1).numpy()
    log_p = aligner.log_p(PCM)
    np.testing.assert_allclose(log_p, expected, atol=1e-5)
    assert len(log_p) == (len(PCM) - 400) // 320 + 1
    assert np.ptp(log_p) > 1
    words = ["The", "cat", "42"]
    assert aligner.times(PCM, words) == times(log_p, words, aligner.alphabet, 1.0)


def test_alphabet_blank_and_case_follow_the_layout(english: Path, multilingual: Path) -> None:
    one, other = Aligner(english).alphabet, Aligner(multilingual).alphabet
    assert (one.blank, one.separator, one.spell("Cat's")) == (0, 4, [19, 7, 6, 27, 12])
    assert (other.blank, other.separator, other.spell("Cat")) == (0, None, [23, 4, 10])


def test_aligner_refuses_a_recording_shorter_than_a_frame(english: Path) -> None:
    with pytest.raises(CannotAlign, match="at least one frame of samples, got 300 samples"):
        Aligner(english).times(PCM[:300], ["a"])


def test_converted_aligner_matches_the_release(
    english: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "release"
    copy.mkdir()
    for name in FILES:
        (copy / name).write_bytes((english / name).read_bytes())
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()) | {"auto_map": {}}))
    (copy / "more.py").write_text("")
    os.mkfifo(copy / "more.json")  # not read
    assert main(["aligner", "--model", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert "blank 0" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert "auto_map" not in (tmp_path / "out/config.json").read_text()
    np.testing.assert_array_equal(Aligner(tmp_path / "out").log_p(PCM), Aligner(english).log_p(PCM))


def test_aligner_refuses_non_finite_model_outputs(english: Path, tmp_path: Path) -> None:
    shutil.copytree(english, tmp_path / "release")
    changed("config.json", layer_norm_eps=float("nan"))(tmp_path / "release")
    with pytest.raises(CannotAlign, match="expected finite outputs of the model, got NaN"):
        Aligner(tmp_path / "release").times(PCM, ["a"])


def changed(name: str, **changes: Any) -> Any:
    def change(folder: Path) -> None:
        record = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps(record))

    return change


def without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def other_weights(change: Any) -> Any:
    def write(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return write


def linked_weights(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("vocab.json"), "vocab.json is missing"),
        (without("model.safetensors"), "model.safetensors is missing"),
        (linked_weights, "expected a file of this release, got a link"),
        (changed("config.json", model_type="hubert"), "model_type must be wav2vec2, got hubert"),
        (changed("config.json", adapter_attn_dim=16), "adapter_attn_dim: expected none (adapters"),
        (changed("config.json", num_hidden_layers=10**9), "num_hidden_layers: expected an integer in [1, 100]"),
        (
            changed("config.json", num_attention_heads=0),
            "num_attention_heads: expected an integer in [1, 32768]",
        ),
        (changed("config.json", pad_token_id=99), "pad_token_id: expected the id of the blank, got 99"),
        (changed("config.json", vocab_size="many"), "vocab_size"),
        (changed("vocab.json", a=7), "expected a different id for each label"),
        (changed("vocab.json", a=32), "expected ids below vocab_size 32"),
        (changed("vocab.json", eng={"a": 1}), "expected the labels of one alphabet, got alphabets by language"),
        (changed("preprocessor_config.json", sampling_rate=8_000), "sampling_rate: expected 16000, got 8000"),
        (changed("preprocessor_config.json", do_normalize="yes"), "do_normalize: expected true or false, got 'yes'"),
        (other_weights(lambda tensors: tensors.pop("lm_head.bias")), "missing: lm_head.bias"),
        (other_weights(lambda tensors: tensors.update(more=torch.zeros(1))), "unknown: more"),
        (other_weights(lambda tensors: tensors["lm_head.bias"].fill_(torch.nan)), "expected finite numbers"),
    ],
)
def test_invalid_aligner_files_are_refused(
    english: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes((english / name).read_bytes())
    change(folder)
    assert main(["aligner", "--model", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
