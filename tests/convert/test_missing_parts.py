"""Checkpoints without a codec."""

from pathlib import Path

import pytest

from lab.releases import random_qwen3_tts
from stretto.convert import make_repository
from stretto.convert.command import main


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
