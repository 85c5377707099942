"""Every family has a template, which opens over its checkpoint."""

from pathlib import Path

import pytest

from stretto.errors import CheckpointError
from stretto.families.prompting import open_template
from stretto.families.registry import FOLDERS, module_of, read_family
from tests.fakes import FrameCounter


def test_every_family_can_be_prompted() -> None:
    assert all(module_of(name, "prompt") for name in FOLDERS)


@pytest.mark.parametrize("name", ["bagpiper", "opuslm", "opuslm_dialogue"])
def test_a_checkpoint_without_its_tokenizer_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected a tokenizer"):
        open_template(read_family({"speech_family": name}), tmp_path, FrameCounter(), "cpu")
