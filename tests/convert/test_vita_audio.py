"""Conversion of VITA-Audio releases keeps all weights; mismatches are refused with a one-line message."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lab.releases import random_vita
from lab.releases.random_vita import ADAPTOR, TOWER
from stretto.convert.command import main
from stretto.families.vita_audio.convert import schedule
from stretto.families.vita_audio.family import SCHEDULES
from stretto.family.plugin import family_at
from tests.vita_release import command

TYPES = "'qwen2_mtp' or 'qwen2' or 'qwen2_mtp_sensevoice'"


def converted(tmp_path: Path, config: dict[str, Any] | None = None) -> Path:
    release = random_vita.write_release(tmp_path / "release", config)
    assert main(command(release, tmp_path / "out")) == 0
    return tmp_path / "out"


def test_converted_tensors_and_ids_match_the_published_ones(tmp_path: Path) -> None:
    out = converted(tmp_path)
    published = load_file(tmp_path / "release" / "model.safetensors")
    written = {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert published.keys() == written.keys()
    assert all(np.array_equal(published[name], written[name]) for name in published)
    family, tokens = family_at(out), json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    assert family.layout.audio[0] == range(ids["<|audio_0|>"], ids["<|audio_63|>"] + 1)
    assert family.drawn_ends == (ids["<|im_end|>"], ids["<|endoftext|>"])
    assert family.markers["begin_of_audio"] == ids["<|begin_of_audio|>"]


def test_audio_encoder_tensors_are_converted_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = converted(tmp_path, random_vita.PLUS)
    assert "no audio tokenizer" not in capsys.readouterr().out
    published = load_file(tmp_path / "release" / "model.safetensors")
    written = {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}
    heard = {name: f"audio_tower.{name.removeprefix(TOWER)}" for name in published if name.startswith(TOWER)}
    heard |= {name: f"adaptor.{name.removeprefix(ADAPTOR)}" for name in published if name.startswith(ADAPTOR)}
    unused = {name for name in published if ".ctc." in name}
    assert len(unused) == 2
    assert written.keys() == {heard.get(name, name) for name in published.keys() - unused}
    assert all(np.array_equal(published[name], written[heard[name]]) for name in heard.keys() - unused)
    family, audio = family_at(out), json.loads((out / "config.json").read_text())["audio_config"]
    assert family.markers["context_of_audio"] == 1 + family.markers["end_of_audio"]
    assert (audio["num_blocks"], len(audio["shift"])) == (3, 560)
    numbers = (tmp_path / "release" / "am.mvn").read_text().split("<Rescale>")[1].split("[ ")[1].split(" ]")[0]
    assert audio["scale"] == [float(number) for number in numbers.split()]


def test_models_with_an_audio_encoder_refuse_an_audio_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = random_vita.write_release(tmp_path / "release", random_vita.PLUS)
    assert main([*command(release, tmp_path / "out"), "--ssl-tokenizer", str(tmp_path)]) == 1
    assert "VITA-Audio-Plus, which has its own audio encoder" in capsys.readouterr().err


@pytest.mark.parametrize("mode", SCHEDULES)
def test_release_schedule_is_the_default_among_all_schedules(tmp_path: Path, mode: str) -> None:
    release = random_vita.write_release(tmp_path / "release")
    (release / "generation_config.json").write_text(json.dumps({"mtp_inference_mode": list(SCHEDULES[mode])}))
    assert main(command(release, tmp_path / "out")) == 0
    bursts = family_at(tmp_path / "out").mechanism.steps
    assert bursts.num_modules == 10
    assert bursts.schedules[0].name == mode
    assert {each.name: each.mode for each in bursts.schedules} == SCHEDULES


def test_default_schedule_depends_on_the_number_of_mtp_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "balance", (12, 4))  # 12 rows of the backbone need no module
    assert schedule(tmp_path, 4) == "balance"
    assert schedule(tmp_path, 3) == "vanilla"


def test_mtp_modules_with_a_model_prefix_are_converted(tmp_path: Path) -> None:
    """Some tools write module names with this prefix."""
    release = random_vita.write_release(tmp_path / "release")
    stored = load_file(release / "model.safetensors")
    below = {f"model.{name}" if name.startswith("mtp_") else name: tensor for name, tensor in stored.items()}
    save_file(below, release / "model.safetensors")
    assert main(command(release, tmp_path / "out")) == 0
    written = {name for path in (tmp_path / "out").glob("*.safetensors") for name in load_file(path)}
    assert written == stored.keys()


def test_release_without_mtp_modules_converts(tmp_path: Path) -> None:
    plain = {**random_vita.SMALL, "model_type": "qwen2", "num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    out = converted(tmp_path, plain)
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 2
    assert family_at(out).mechanism.steps is None


def config(**changes: object) -> Callable[[Path], None]:
    def apply(release: Path) -> None:
        record = json.loads((release / "config.json").read_text()) | changes
        record = {name: value for name, value in record.items() if value is not None}
        (release / "config.json").write_text(json.dumps(record))

    return apply


def generation(**changes: object) -> Callable[[Path], None]:
    return lambda release: (release / "generation_config.json").write_text(json.dumps(changes))


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


def few_modules(release: Path) -> None:
    random_vita.write_release(release, {**random_vita.SMALL, "num_hidden_layers": 3, "num_nextn_predict_layers": 1})


REFUSED: list[tuple[str, Callable[[Path], None], str]] = [
    ("plus", config(model_type="qwen2_mtp_sensevoice"), "without <|context_of_audio|>"),
    ("other", config(model_type="llama"), f"config.json: model_type: expected {TYPES}, got 'llama'"),
    ("lacks", config(rms_norm_eps=None), "config.json: rms_norm_eps is missing"),
    ("modules", config(num_nextn_predict_layers=12), "expected less than num_hidden_layers, which is 12, got 12"),
    ("vocabulary", config(vocab_size=300), "expected a tokenizer of at most 300 tokens with "),
    ("marker", tokenizer("<|begin_of_audio|>", "<|begin_of_sound|>"), "without <|begin_of_audio|>"),
    ("codes", tokenizer('"<|audio_9|>"', '"<|audio_99|>"'), "expected <|audio_9|>"),
    ("mode", generation(mtp_inference_mode=[1, 4, 3]), "mtp_inference_mode: expected one of [8192, 0], [1, 4, 3, 8,"),
    ("few modules", few_modules, "mtp_inference_mode: expected at most 1 modules, got [1, 4, 3, 8, 4, 10]"),
    ("module", tensors(lambda each: each.pop("mtp_projs.3.weight")), "missing: mtp_projs.3.weight"),
    ("missing", tensors(lambda each: each.pop("model.layers.1.mlp.up_proj.weight")), "missing: model.layers.1.mlp.up"),
    ("unknown", tensors(lambda each: each.update(odd=np.zeros(2, np.float32))), "unknown: odd"),
    (
        "shape",
        tensors(lambda each: each.update({"lm_head.weight": np.zeros((2, 64), np.float32)})),
        "wrong shape: lm_head.weight [2, 64] instead of [384, 64]",
    ),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_invalid_releases_are_refused_in_one_line_without_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], message: str
) -> None:
    release = random_vita.write_release(tmp_path / "release")
    change(release)
    assert main(command(release, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()
