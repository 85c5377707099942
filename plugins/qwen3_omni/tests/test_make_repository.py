"""Model repository of a checkpoint with a speaker."""

import json
from pathlib import Path

import pytest

from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import convert
from stretto.convert.make_repository import main
from stretto.convert.profiles import bytes_per_row
from stretto.family.plugin import config_at
from stretto.machine.sizing import ENGINE_BYTES, SERVER_BYTES


def made(checkpoint: Path, out: Path, *words: str) -> dict:
    assert main(["--checkpoint", str(checkpoint), "--out", str(out), *words]) == 0
    return json.loads((out / "language_model/1/engine.json").read_text())


def test_speaker_has_an_engine_and_memory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its share of a GPU holds its weights and is reserved; options that are given replace computed ones."""
    whole = convert(tmp_path)
    arguments = made(whole, tmp_path / "cpu")
    speaker = arguments.pop("speaker")
    assert speaker.keys() == arguments.keys()
    assert speaker["max_model_len"] == 512
    assert speaker["kv_cache_memory_bytes"] >= 512 * bytes_per_row(config_at(whole / "talker"), "float32")
    arguments = made(whole, tmp_path / "gpu", "--gpu", "1")
    own_mb = arguments["speaker"]["memory_mb"]
    assert own_mb > ENGINE_BYTES >> 20
    assert arguments["reserved_mb"] == own_mb + (SERVER_BYTES >> 20)
    monkeypatch.setattr("stretto.convert.profiles.file_bytes", lambda files: 3 << 30)
    assert made(whole, tmp_path / "large", "--gpu", "1")["speaker"]["memory_mb"] in range(own_mb + 3070, own_mb + 3073)
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"speaker": {"memory_mb": 900, "max_num_seqs": 3}}))
    arguments = made(whole, tmp_path / "given", "--gpu", "1", "--engine-args", str(given))
    assert (arguments["speaker"]["memory_mb"], arguments["speaker"]["max_num_seqs"]) == (900, 3)
    assert arguments["reserved_mb"] == 900 + (SERVER_BYTES >> 20)
    given.write_text(json.dumps({"speaker": [1]}))
    words = ["--checkpoint", str(whole), "--out", str(tmp_path / "odd"), "--engine-args", str(given)]
    assert main(words) == 1
    assert (
        "speaker: expected an object with the options of an engine, without speaker and checkpoint, got [1]"
        in capsys.readouterr().err
    )
