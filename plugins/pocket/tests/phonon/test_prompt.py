"""Phonon prompts: text and limits as in the authors' runtime, whose samples `tests/engine/test_phonon.py` compares."""

import pytest

from plugins.pocket.lab.phonon_replies import FRAME, TEXTS, VOICE
from plugins.pocket.tests.phonon_release import convert_release, stored
from stretto.errors import InvalidRequest
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt


@pytest.fixture(scope="module")
def preprocessor(tmp_path_factory: pytest.TempPathFactory) -> Preprocessor:
    return Preprocessor(convert_release(tmp_path_factory.mktemp("phonon")))


def pieces(preprocessor: Preprocessor, text: str) -> list[Prompt]:
    """Return the prompts of all pieces of a text."""
    found = [preprocessor.prepare(RawRequest(text=text, options=f'{{"voice": "{VOICE}", "piece": 0}}'))]
    for number in range(1, found[0].num_pieces):
        found.append(preprocessor.prepare(RawRequest(text=text, options=f'{{"voice": "{VOICE}", "piece": {number}}}')))
    return found


@pytest.mark.parametrize("at", range(len(TEXTS)))
def test_lengths_match_the_authors_runtime(preprocessor: Preprocessor, at: int) -> None:
    """The runtime's lengths are those of all pieces, if speech ends in their first frame, or never."""
    found = pieces(preprocessor, TEXTS[at])
    tails = [prompt.sampling.latents.tail_rows for prompt in found if prompt.sampling.latents]
    assert sum(tails) * FRAME == stored()["small.all_numbers"][at]
    assert sum(prompt.sampling.audio.max_rows for prompt in found) * FRAME == stored()["small.first_numbers"][at]


def test_a_recording_is_refused(preprocessor: Preprocessor) -> None:
    turns = '[{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "a"}]'
    with pytest.raises(InvalidRequest, match="messages"):
        preprocessor.prepare(RawRequest(messages=turns, pcm_in=stored()["small.pcm"][0], sample_rate=24_000))
