"""Releases with several YAML files, and checkpoints without a codec."""

from pathlib import Path

import pytest

from lab.releases import random_qwen3_tts
from stretto.convert import make_repository
from stretto.convert.command import main
from tests import published_checkpoints


def bagpiper(folder: Path) -> list[str]:
    """Write a Bagpiper release with its published file names; return the converter's arguments without `--config`."""
    published = published_checkpoints.write_bagpiper(folder / "release")
    words = published_checkpoints.command("bagpiper", published, folder / "out")
    place = words.index("--config")
    Path(words[place + 1]).rename(folder / "release" / "train_bagpiper_tts.yaml")
    (folder / "release" / "inference.yaml").write_text("dtype: bfloat16\n")
    return [*words[:place], *words[place + 2 :]]


def test_training_config_is_chosen_among_yaml_files(tmp_path: Path) -> None:
    assert main(bagpiper(tmp_path)) == 0


def test_ambiguous_training_configs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, release = bagpiper(tmp_path), tmp_path / "release"
    (release / "copy.yaml").write_text((release / "train_bagpiper_tts.yaml").read_text())
    assert main(words) == 1
    assert "--config: expected the config.yaml or config.json of bagpiper, got none" in capsys.readouterr().err


def test_missing_codec_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release, checkpoint = random_qwen3_tts.write_release(tmp_path / "release"), tmp_path / "checkpoint"
    assert main(["qwen3-tts", "--model", str(release), "--out", str(checkpoint)]) == 0
    assert "codec/ is missing: the server needs it before it can speak (--codec)" in capsys.readouterr().out
    served = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "served")]
    assert make_repository.main(served) == 1
    assert f"{checkpoint}: codec/ is missing (--codec of stretto convert): " in capsys.readouterr().err
    (checkpoint / "codec").mkdir()
    assert make_repository.main(served) == 1
    assert "codec/ is missing" not in capsys.readouterr().err
