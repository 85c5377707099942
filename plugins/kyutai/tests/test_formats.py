"""Releases in transformers format of families that are read in the authors' format only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.refused_conversion import refused


@pytest.mark.parametrize(
    ("family", "architecture", "supported"),
    [
        ("personaplex", "MoshiForConditionalGeneration", "nvidia/personaplex-7b-v1"),
        ("kyutai-tts", "KyutaiSpeechToTextForConditionalGeneration", "kyutai/tts-1.6b-en_fr"),
    ],
)
def test_transformers_format_is_refused_with_the_name_of_the_supported_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, architecture: str, supported: str
) -> None:
    save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], "model_type": family}))
    out = tmp_path / "out"
    said = refused([family, "--model", str(tmp_path), "--out", str(out)], out, capsys)
    assert supported in said
    assert f"got transformers format (architectures ['{architecture}'])" in said
