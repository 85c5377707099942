"""What a converter copies of a codec's published directory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.checkpoints.random_glm4_voice import write_glm4_voice
from stretto.checkpoints.codec import check_directory
from stretto.errors import CheckpointError
from stretto.families.base import Family


def speaking(num_codebooks: int, codebook_size: int) -> Family:
    """A family as far as its codec goes."""
    layout = SimpleNamespace(num_codebooks=num_codebooks, codebook_size=codebook_size)
    return cast(Any, SimpleNamespace(codec="glm4_voice", layout=layout))


def test_the_files_of_glm4_voice_are_taken_as_published(tmp_path: Path) -> None:
    folder = write_glm4_voice(tmp_path)
    (folder / "README.md").write_text("not the codec's")
    files = check_directory(folder, speaking(1, 64))
    assert [path.name for path in files] == ["config.yaml", "flow.pt", "hift.pt"]
    with pytest.raises(CheckpointError, match=r"expected 1 codebooks of 16384 codes, got \(1, 64\)"):
        check_directory(folder, speaking(1, 16_384))
