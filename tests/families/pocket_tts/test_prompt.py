"""Prompts of Pocket TTS: text as the authors prepare it, rows of a voice, lengths and tails."""

import json
from pathlib import Path

import pytest

from stretto.errors import InvalidRequest
from stretto.families.pocket_tts.family import PocketVocabulary, TextRules
from stretto.families.pocket_tts.prompt import finished, rewritten
from stretto.families.registry import VOCABULARY, config_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.pocket_release import KINDS, convert_release, reply

RULES = TextRules()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_release(tmp_path_factory.mktemp("pocket"), "english")


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_prepared_as_by_the_authors(tmp_path: Path, kind: str) -> None:
    """Students have a tokenizer of SentencePiece."""
    checkpoint, expected = convert_release(tmp_path, kind), reply(kind)
    assert (checkpoint / "tokenizer.model").exists() == (kind != "english")
    known = PocketVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    assert finished(rewritten(expected.text, known.text), known.text) == expected.prepared
    prompt = Preprocessor(checkpoint).prepare(RawRequest(text=expected.text))
    assert prompt.rows[len(known.voice("alba")) : -1, 0].tolist() == expected.tokens


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("  good\nmorning ", RULES, "Good morning."),
        ("Wait!", RULES, "Wait!"),
        ("he said “yes”", RULES, "He said “yes”."),
        ("so, ", RULES, "So."),
        ("(perhaps -)", RULES, "(perhaps.)"),
        ("one; two", TextRules(drops_semicolons=True), "One, two."),
        ('"Hi?", she said', TextRules(replaced=(('"', ""),)), "Hi? she said."),
        ("salAm", TextRules(begins_with_capital=False, ends_with_mark=False), "salAm"),
        ("two words", TextRules(pads_short=True), " " * 8 + "Two words."),
        ("a text of five words", TextRules(pads_short=True), "A text of five words."),
    ],
)
def test_rules_of_texts(text: str, rules: TextRules, expected: str) -> None:
    assert finished(rewritten(text, rules), rules) == expected


@pytest.mark.parametrize(
    ("text", "tail_rows", "max_rows"), [("one two three four", 5, 109), ("one two three four five", 3, 130)]
)
def test_few_words_have_a_longer_tail(checkpoint: Path, text: str, tail_rows: int, max_rows: int) -> None:
    prompt = Preprocessor(checkpoint).prepare(RawRequest(text=text))
    assert prompt.sampling.latents is not None
    assert prompt.sampling.latents.tail_rows == tail_rows
    assert prompt.sampling.audio.max_rows == max_rows
    shorter = Preprocessor(checkpoint).prepare(RawRequest(text=text, options=json.dumps({"audio": {"max_rows": 9}})))
    assert shorter.sampling.audio.max_rows == 9


def test_a_voice_is_its_rows(checkpoint: Path) -> None:
    known = PocketVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    template = Preprocessor(checkpoint)
    for voice, number in (("alba", 21), ("jean", 9)):
        rows = template.prepare(RawRequest(text="Hello.", options=json.dumps({"voice": voice}))).rows
        assert rows[:number, 0].tolist() == list(known.voice(voice))
        assert rows[-1, 0] == known.bos
        assert not rows[:, 1:].any()
        assert (rows[number:-1, 0] < known.num_text_ids).all()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (RawRequest(text="…"), "text: expected text with a letter or a digit, got '…'"),
        (RawRequest(text="a" * 201), "text: expected at most 200 characters, got 201 characters"),
        (RawRequest(text="a", options='{"voice": "nobody"}'), r"options\.voice: expected one of alba, jean"),
    ],
)
def test_what_cannot_be_spoken_is_refused(checkpoint: Path, request_: RawRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Preprocessor(checkpoint).prepare(request_)
