"""Every family has a template, which opens over its checkpoint."""

from pathlib import Path

import pytest
from stretto.errors import CheckpointError
from stretto.families.registry import BUILDERS, read_family
from stretto.families.templates import TEMPLATES

from tests.fakes import FrameCounter


def test_every_family_can_be_prompted() -> None:
    assert TEMPLATES.keys() == BUILDERS.keys()


@pytest.mark.parametrize("name", ["bagpiper", "opuslm", "opuslm_dialogue"])
def test_a_checkpoint_without_its_tokenizer_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected a tokenizer"):
        TEMPLATES[name](read_family({"speech_family": name}), tmp_path, FrameCounter(), "cpu")
