"""A release, converted and served, replies what its own file says: ids of all streams, drawn and greedy alike."""

from pathlib import Path

import pytest

from python_backend.families.base import Family
from tests.engine.harness import Engine
from tests.engine.prompts import make_prompts
from tests.published_checkpoints import convert, write_opuslm
from tests.reference.published import PublishedReference
from tests.small_vocabularies import DIALOGUE, OPUSLM

pytestmark = pytest.mark.engine
LENGTH = 160


@pytest.mark.parametrize(
    ("command", "family", "backbone"),
    [("opuslm", OPUSLM, "olmo2"), ("opuslm", OPUSLM, "llama"), ("opuslm-dialogue", DIALOGUE, "llama")],
)
def test_a_converted_release_replies_as_its_own_file(
    command: str, family: Family, backbone: str, tmp_path: Path
) -> None:
    published = write_opuslm(tmp_path, backbone=backbone, is_dialogue=family is DIALOGUE, seed=3)
    folder = convert(command, published, tmp_path / "out")
    reference = PublishedReference(published, family, LENGTH)
    prompts = make_prompts(family, 4)
    engine = Engine(folder, max_model_len=LENGTH)
    try:
        answers = engine.run(prompts)
    finally:
        engine.shutdown()
    for name, prompt in prompts.items():
        rows, lead = reference.reply(prompt)
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        assert answers[name].rows == rows
