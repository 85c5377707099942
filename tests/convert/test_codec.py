"""Files that a converter copies from the published directories of codec and tokenizer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab.releases.random_glm4_voice import NUM_CODES, write_glm4_tokenizer, write_glm4_voice
from lab.releases.random_qwen3_codec import write_qwen3_codec
from stretto.convert.conversion import check_codec
from stretto.convert.release import marks
from stretto.encoders.whisper_vq import FOLDER, load_tokenizer
from stretto.errors import CheckpointError
from stretto.families.vita_audio.convert import PublishedTokenizer
from stretto.family.base import Family


def speaking(num_codebooks: int, codebook_size: int, codec: str = "glm4_voice") -> Family:
    """Return a family that defines only its codec."""
    layout = SimpleNamespace(codebook_size=codebook_size)
    return cast(Any, SimpleNamespace(codec=codec, num_codebooks=num_codebooks, layout=layout))


def test_published_glm4_voice_files_are_accepted(tmp_path: Path) -> None:
    folder = write_glm4_voice(tmp_path)
    (folder / "README.md").write_text("not the codec's")
    files = check_codec(folder, speaking(1, 64))
    assert [path.name for path in files] == ["config.yaml", "flow.pt", "hift.pt"]
    with pytest.raises(CheckpointError, match=r"expected 1 codebooks of 16384 codes, got 1 of 64"):
        check_codec(folder, speaking(1, 16_384))


def test_published_qwen3_tts_codec_files_are_accepted(tmp_path: Path) -> None:
    folder = write_qwen3_codec(tmp_path)
    files = check_codec(folder, speaking(16, 64, "qwen3_12hz"))
    assert [path.name for path in files] == ["config.json", "model.safetensors", "preprocessor_config.json"]
    with pytest.raises(CheckpointError, match=r"expected 16 codebooks of 2048 codes, got 16 of 64"):
        check_codec(folder, speaking(16, 2048, "qwen3_12hz"))


def test_published_glm4_tokenizer_files_are_accepted(tmp_path: Path) -> None:
    folder, out = write_glm4_tokenizer(tmp_path / "published"), tmp_path / FOLDER
    (folder / "README.md").write_text("not the tokenizer's")
    out.mkdir()
    written = PublishedTokenizer.from_folder(folder, NUM_CODES).write(out, lambda _: None)
    names = ["config.json", "preprocessor_config.json", "model.safetensors"]
    assert [file.name for file in written] == [f"{FOLDER}/{name}" for name in names]
    assert load_tokenizer(tmp_path, NUM_CODES) is not None
    with pytest.raises(CheckpointError, match="16384 codes"):
        PublishedTokenizer.from_folder(folder, 16_384)


def test_unimportable_converter_is_logged_and_others_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "brook-1.dist-info").mkdir()
    (tmp_path / "brook-1.dist-info" / "entry_points.txt").write_text(
        "[stretto.families]\nbrook = brook_speech:PLUGIN\n"
    )
    code = "from stretto.family.plugin import FamilyPlugin\n"
    code += 'PLUGIN = FamilyPlugin("brook", build=None, convert="brook_speech.not_there")\n'
    (tmp_path / "brook_speech.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert marks()
    assert "brook: cannot import brook_speech.not_there" in caplog.text
