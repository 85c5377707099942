"""The slow reference, which reads the family's data, equals independent formulas for each family."""

from dataclasses import replace
from pathlib import Path

import pytest

from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests.published_checkpoints import write_bagpiper, write_opuslm
from tests.reference.bagpiper import ASSISTANT, AUDIO, OVER, Bagpiper
from tests.reference.opuslm import OpusLM
from tests.reference.published import PublishedReference
from tests.small_vocabularies import BAGPIPER, DIALOGUE, OPUSLM, SMALL_BAGPIPER, SMALL_OPUSLM

pytestmark = pytest.mark.slow
LEAST, MOST = 3, 9


def greedy(family: Family, index: int, task: str, guidance_scale: float = 1.0) -> Prompt:
    """Return a random prompt for a greedy reply with 3 to 9 rows in each segment."""
    sampling = make_prompt(family, index, task).sampling
    text, audio = (
        replace(each, temperature=0.0, min_rows=LEAST, max_rows=MOST) for each in (sampling.text, sampling.audio)
    )
    return make_prompt(family, index, task, text=text, audio=audio, guidance_scale=guidance_scale)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_bagpiper(scale: float, seed: int, tmp_path: Path) -> None:
    published = write_bagpiper(tmp_path, seed=seed)
    pads = [pad for (pad,) in BAGPIPER.layout.extra]
    formulas = Bagpiper(published, range(*SMALL_BAGPIPER.text), pads, SMALL_BAGPIPER.codebook_size)
    reference = PublishedReference(published, BAGPIPER, 160)
    for index, task in enumerate(("tts", "chat", "speak")):
        prompt = greedy(BAGPIPER, index, task, 1.0 if task == "chat" else scale)
        rows = prompt.rows.tolist()
        if task != "speak":
            rows, end = formulas.words(rows, LEAST, MOST)
            rows += [[OVER] + [0] * 7] if task == "chat" else [*end, [ASSISTANT] + [0] * 7, [AUDIO] + [0] * 7]
        if task != "chat":
            rows = formulas.speech(rows, scale, LEAST, MOST)
        assert reference.reply(prompt)[0] == rows[len(prompt.rows) :], task


@pytest.mark.parametrize(("family", "backbone"), [(OPUSLM, "olmo2"), (OPUSLM, "llama"), (DIALOGUE, "llama")])
@pytest.mark.parametrize("seed", [0, 1])
def test_opuslm_references_match_the_formulas(family: Family, backbone: str, seed: int, tmp_path: Path) -> None:
    published = write_opuslm(tmp_path, backbone=backbone, is_dialogue=family is DIALOGUE, seed=seed)
    vocabulary = SMALL_OPUSLM
    ids = (range(*vocabulary.text), range(*vocabulary.ssl), vocabulary.codec, vocabulary.codebook_size)
    formulas = OpusLM(published, *ids)
    reference = PublishedReference(published, family, 160)
    for index, task in enumerate(each.name for each in family.tasks if each.name != "audio_lm"):
        prompt = greedy(family, index, task)
        rows = prompt.rows.tolist()
        kinds = [segment.name for segment in family.task(task).segments]
        if kinds == ["TEXT"]:
            rows = [*formulas.words(rows, LEAST, MOST), [family.end_of_reply] + [0] * 8]
        else:
            rows = (formulas.speech if kinds == ["AUDIO"] else formulas.turn)(rows, LEAST, MOST)
            rows[-1][0] = family.end_of_reply  # which marks the end of the reply for the engine
        assert reference.reply(prompt)[0] == rows[len(prompt.rows) :], task
