"""Qwen3-TTS's small releases, converted."""

from pathlib import Path
from typing import Any

from benchmarks.checkpoints.random_qwen3_tts import small_config, write_release
from stretto.checkpoints.command import main
from stretto.families.base import Family
from stretto.families.qwen3_tts.family import Qwen3TtsVocabulary
from stretto.families.registry import VOCABULARY, config_at, family_at

WIDTHS = {"custom_voice": 64, "voice_design": 96, "base": 96}
CASES = ("custom_voice", "voice_design")


def command(folder: Path, out: Path) -> list[str]:
    """What the converter is told of a release."""
    files = ("--model", str(folder), "--config", str(folder / "config.json"), "--tokenizer", str(folder))
    return ["qwen3-tts", *files, "--out", str(out)]


def convert(folder: Path, kind: str, **changes: Any) -> Path:
    """The checkpoint of a small release, both under `folder`."""
    release = write_release(folder / "release", small_config(kind, WIDTHS[kind], **changes))
    assert main(command(release, folder / "converted")) == 0
    return folder / "converted"


class Checkpoint:
    """A converted release."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind = convert(folder, kind), kind
        self.family: Family = family_at(self.folder)
        self.vocabulary = Qwen3TtsVocabulary.from_record(config_at(self.folder)[VOCABULARY])
