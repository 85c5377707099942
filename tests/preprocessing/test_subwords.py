"""Conversion of text to a family's ids, and text that a family refuses."""

from dataclasses import replace

import pytest

from stretto.errors import InvalidRequest
from stretto.families.bagpiper.family import bagpiper
from stretto.family.text import Subwords
from tests.families.letters import Letters
from tests.small_vocabularies import SMALL_BAGPIPER

FAMILY = replace(bagpiper(SMALL_BAGPIPER), max_text_chars=5)
SUBWORDS = Subwords(Letters(), FAMILY)


def test_subword_ids_start_at_the_family_text_offset() -> None:
    assert SUBWORDS.ids("abz", "text") == [256, 257, 281]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: expected text of at least one character, got ''"),
        ("abcdef", "text: expected at most 5 characters, got 6 characters"),
        ("a\ud800", "text: expected text without lone surrogates, got 'a\\ud800'"),
    ],
)
def test_invalid_text_is_refused_by_field_name(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SUBWORDS.ids(text, "text")
    assert str(caught.value) == message


def test_token_outside_the_model_vocabulary_is_refused() -> None:
    narrow = Subwords(Letters(), replace(FAMILY, subwords=range(256, 280)))
    with pytest.raises(
        InvalidRequest, match=r"messages\[1\].text: expected text that the model has tokens for, got 'z'"
    ):
        narrow.ids("z", "messages[1].text")
