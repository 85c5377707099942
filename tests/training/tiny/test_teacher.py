"""Scripts of the teacher; skipped without its package."""

import pytest

from stretto.families.tiny.family import PHONEMES
from training.tiny.teacher import NO_WORD, Reader, Script, Unreadable


@pytest.fixture(scope="module")
def reader() -> Reader:
    pytest.importorskip("hibari")
    return Reader()


def phonemes(script: Script) -> str:
    return " ".join(PHONEMES[index] for index in script.phonemes)


def test_a_script_has_words_pauses_and_an_owner_for_each_symbol(reader: Reader) -> None:
    script = reader.script(["Yes, it is.", "Go!"])
    assert script.text == "yes, it is. go!"
    assert phonemes(script) == "pau y eh1 s pau ih t ih z pau g ow2 pau"
    assert script.words == (NO_WORD, 0, 0, 0, NO_WORD, 1, 1, 2, 2, NO_WORD, 3, 3, NO_WORD)
    for symbols, owners in zip(script.sentences, script.owners, strict=True):
        assert len(symbols) == len(owners)
        assert list(owners) == sorted(owners)
    assert {owner for owners in script.owners for owner in owners} == set(range(len(script.phonemes)))


@pytest.mark.parametrize("sentence", ["It costs $5", "an e-mail: now"])
def test_sentences_that_cannot_be_aligned_are_refused(reader: Reader, sentence: str) -> None:
    with pytest.raises(Unreadable):
        reader.script([sentence])
