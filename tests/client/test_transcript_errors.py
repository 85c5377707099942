"""A transcript is compared with its text: words that are missing, added or wrong are found, other spellings are not."""

import unicodedata
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto_client.transcript_errors import (
    ANY,
    FAULT,
    MISSED,
    RIGHT,
    WRONG,
    _sizes,
    error_size,
    is_comparable,
    spelling,
)

SENTENCES = [
    "The quick brown foxes jumped over seven lazy sleeping dogs",
    "Please remember that everything happens during winter mornings",
    "Der kleine Hund schläft heute unter einem großen Kirschbaum",
    "Мама сегодня вечером готовит очень вкусный горячий ужин",
    "Ο μικρός σκύλος κοιμάται σήμερα κάτω από το δέντρο",
]
CHINESE = "今天天气很好我们一起去公园散步然后回家吃饭"
LETTERS = st.text(st.sampled_from("abcdeé ßñ漢字か?"), max_size=12)


def size(text: str, heard: str) -> int:
    return error_size(spelling(text), spelling(heard))


def words(least: int) -> list[tuple[list[str], int]]:
    """Return the words of each sentence, and the index of a word of at least that many letters, for all of these."""
    sentences = map(str.split, SENTENCES)
    return list(
        chain.from_iterable([(line, at) for at, word in enumerate(line) if len(word) >= least] for line in sentences)
    )


@pytest.mark.parametrize(("line", "at"), words(least=4), ids=str)
def test_word_that_is_missing_or_doubled_is_found(line: list[str], at: int) -> None:
    text = " ".join(line)
    assert size(text, " ".join(line[:at] + line[at + 1 :])) >= FAULT
    assert size(text, " ".join(line[: at + 1] + line[at:])) >= FAULT


@pytest.mark.parametrize(("line", "at"), words(least=6), ids=str)
@pytest.mark.parametrize("other", ["vjvjvjvj", "фффффф"])
def test_word_with_other_letters_is_found(line: list[str], at: int, other: str) -> None:
    assert size(" ".join(line), " ".join([*line[:at], other, *line[at + 1 :]])) >= FAULT


def test_characters_of_texts_without_spaces_are_compared() -> None:
    assert size(CHINESE, f"{CHINESE[:8]}，{CHINESE[8:]}。") == 0
    assert size(CHINESE, CHINESE[:8] + CHINESE[12:]) >= FAULT
    assert size(CHINESE, CHINESE[:12] + CHINESE[8:]) >= FAULT
    assert size(CHINESE, CHINESE.replace("们", "门")) == WRONG


@pytest.mark.parametrize("text", SENTENCES)
def test_case_punctuation_and_forms_of_letters_make_no_difference(text: str) -> None:
    others = [text.upper(), text.lower(), text.replace(" ", ", ") + ".", text.replace(" ", " — "), f"“{text}!”"]
    others += [unicodedata.normalize("NFD", text), text.replace(" ", "\n"), text.replace(" ", "")]
    others += [f"[laugh] {text}", f'<break time="2s"/>{text}', f"Speaker 1: {text}", text.replace(" ", " [pause 2s] ")]
    assert [size(text, other) for other in others] == [0] * len(others)
    assert [size(other, text) for other in others] == [0] * len(others)


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("The train leaves at 12:45 from track 7.", "the train leaves at twelve forty five from track seven"),
        ("The train leaves at twelve forty five from track seven", "The train leaves at 12:45 from track 7."),
        ("It costs $3.50, or 5% less for members", "it costs three dollars fifty or five percent less for members"),
        ("In 1999 about 2,000,000 people saw it", "in nineteen ninety nine about two million people saw it"),
        ("Dr. Smith and Mrs. Jones live in the U.S. now", "doctor smith and missus jones live in the u s now"),
        ("The BBC reported it, e.g. on Monday", "the bee bee see reported it for example on monday"),
        ("Write to anna@example.com & wait for an answer", "write to anna at example dot com and wait for an answer"),
        ("It is 20 °C, i.e. warm", "it is twenty degrees celsius that is warm"),
        ("He doesn't like the colour of this theatre", "he doesnt like the color of this theater"),
        ("They're all right, their two friends were late too", "there alright they're to friends where late to"),
        ("She stood by her husband for a while", "she stood by her has been for awhile"),
        ("He [the doctor] left early", "he the doctor left early"),
        ("Choose x < y when the sum > zero in it", "choose x less than y when the sum is above zero in it"),
        ("Wait… what?! ¯\\_(ツ)_/¯ 🎉 OK then, let us go", "wait what okay then let us go"),
    ],
)
def test_other_spellings_of_the_same_words_are_no_faults(text: str, heard: str) -> None:
    assert size(text, heard) < FAULT


def test_errors_beside_digits_are_found() -> None:
    text = "The train leaves at 12:45 from the second platform"
    assert size(text, "the train leaves at twelve forty five from the second") >= FAULT
    assert size(text, "at twelve forty five from the second platform") >= FAULT


@pytest.mark.parametrize(("heard", "found"), [("", 4), ("thank you for watching", 15)], ids=["nothing", "other"])
def test_speech_without_the_text_is_found(heard: str, found: int) -> None:
    assert size("Stop", heard) >= FAULT
    assert size("Stop", heard) <= MISSED * (found + len("Stop"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Stop.", True), ("At 12", True), ("12:45", False), ("1, 2, 3 and go!", True), ("…", False), ("", False),
     ("NATO", True), ("the NATO", True), ("[laugh]", False), ("🎉", False), ("漢字", True)],
)  # fmt: skip
def test_texts_of_digits_and_symbols_are_not_comparable(text: str, expected: bool) -> None:
    assert is_comparable(spelling(text)) is expected


@settings(max_examples=50)
@given(LETTERS, LETTERS)
def test_sizes_are_those_of_a_plain_alignment(text: str, heard: str) -> None:
    """An alignment with the fewest errors has the sum of sizes of a slow loop, which has the same costs."""
    first = spelling(text)
    second = spelling(heard)
    costs = np.zeros((len(first) + 1, len(second) + 1), int)
    for row in range(len(first) + 1):
        for column in range(len(second) + 1):
            steps = [costs[row - 1, column] + (first[row - 1] != ANY)] if row else []
            steps += [costs[row, column - 1] + (second[column - 1] != ANY)] if column else []
            if row and column:
                pair = {first[row - 1], second[column - 1]}
                steps.append(costs[row - 1, column - 1] + (len(pair) > 1 and ANY not in pair))
            costs[row, column] = min(steps, default=0)
    sizes = [*_sizes(first, second)]
    assert sum(found in (MISSED, WRONG) for found in sizes) == costs[-1, -1]
    assert {*sizes} <= {MISSED, WRONG, RIGHT, 0}
