"""VITA-Audio's release, converted: what is read is what was published; what does not fit is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.checkpoints import random_vita
from stretto.checkpoints.command import main
from stretto.families.registry import family_at
from tests.vita_release import command

TYPES = "qwen2_mtp", "qwen2"


def converted(tmp_path: Path, config: dict[str, Any] | None = None) -> Path:
    release = random_vita.write_release(tmp_path / "release", config)
    assert main(command(release, tmp_path / "out")) == 0
    return tmp_path / "out"


def test_tensors_and_numbers_are_the_published_ones(tmp_path: Path) -> None:
    out = converted(tmp_path)
    published = load_file(tmp_path / "release" / "model.safetensors")
    written = {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}
    main_names = {name for name in published if not name.startswith("mtp_")}
    main_names -= {name for name in main_names if name.startswith("model.layers.") and int(name.split(".")[2]) >= 2}
    assert main_names <= written.keys()
    assert all(np.array_equal(published[name], written[name]) for name in main_names)
    family, tokens = family_at(out), json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    assert family.layout.audio[0] == range(ids["<|audio_0|>"], ids["<|audio_63|>"] + 1)
    assert family.drawn_ends == (ids["<|im_end|>"], ids["<|endoftext|>"])
    assert family.markers["begin_of_audio"] == ids["<|begin_of_audio|>"]


def test_a_release_without_modules_is_converted_too(tmp_path: Path) -> None:
    plain = {**random_vita.SMALL, "model_type": "qwen2", "num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    assert json.loads((converted(tmp_path, plain) / "config.json").read_text())["num_hidden_layers"] == 2


def config(**changes: object) -> Callable[[Path], None]:
    def apply(release: Path) -> None:
        record = json.loads((release / "config.json").read_text()) | changes
        record = {name: value for name, value in record.items() if value is not None}
        (release / "config.json").write_text(json.dumps(record))

    return apply


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(release: Path) -> None:
        stored = load_file(release / "model.safetensors")
        change(stored)
        save_file(stored, release / "model.safetensors")

    return apply


def tokenizer(old: str, new: str) -> Callable[[Path], None]:
    def apply(release: Path) -> None:
        text = (release / "tokenizer.json").read_text()
        assert old in text
        (release / "tokenizer.json").write_text(text.replace(old, new))

    return apply


REFUSED: list[tuple[str, Callable[[Path], None], str]] = [
    ("plus", config(model_type="qwen2_mtp_sensevoice"), "got 'qwen2_mtp_sensevoice': VITA-Audio-Plus, which hears"),
    ("other", config(model_type="llama"), f"config.json: model_type: expected one of {TYPES}, got 'llama'"),
    ("lacks", config(rms_norm_eps=None), "config.json: rms_norm_eps is missing"),
    ("modules", config(num_nextn_predict_layers=12), "expected less than num_hidden_layers, which is 12, got 12"),
    ("vocabulary", config(vocab_size=300), "364 tokens for a vocab_size of 300"),
    ("marker", tokenizer("<|begin_of_audio|>", "<|begin_of_sound|>"), "expected a token <|begin_of_audio|>, got none"),
    ("codes", tokenizer('"<|audio_9|>"', '"<|audio_99|>"'), "expected <|audio_9|>"),
    ("missing", tensors(lambda each: each.pop("model.layers.1.mlp.up_proj.weight")), "missing: model.layers.1.mlp.up"),
    ("unknown", tensors(lambda each: each.update(odd=np.zeros(2, np.float32))), "unknown: odd"),
    (
        "shape",
        tensors(lambda each: each.update({"lm_head.weight": np.zeros((2, 64), np.float32)})),
        "of another shape: lm_head.weight [2, 64] for [384, 64]",
    ),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], message: str
) -> None:
    release = random_vita.write_release(tmp_path / "release")
    change(release)
    assert main(command(release, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
