"""Every family of the server has a template, which its checkpoint can open."""

from pathlib import Path

import pytest

from stretto.entry_points import FAMILIES, OWN, installed
from stretto.errors import CheckpointError
from stretto.family.plugin import plugin, read_family
from stretto.family.prompting import template_opener
from tests.fakes import FrameCounter


@pytest.mark.slow
def test_every_built_in_family_but_the_talker_has_a_prompt_template() -> None:
    built_in = [each.name for each in installed(FAMILIES) if each.distribution == OWN]
    assert len(built_in) >= 11
    assert all(name.endswith("_talker") for name in built_in if plugin(name).open_template is None)


@pytest.mark.parametrize("name", ["bagpiper", "opuslm", "opuslm_dialogue"])
def test_a_checkpoint_without_its_tokenizer_is_refused(name: str, tmp_path: Path) -> None:
    family = read_family({"speech_family": name})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be loaded as a tokenizer"):
        template_opener(family)(family, tmp_path, FrameCounter(), "cpu")
