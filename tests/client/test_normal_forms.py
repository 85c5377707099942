"""Normal forms take linear time, and are Unicode's for every text that people write."""

import sys
import unicodedata
from typing import get_args

import pytest

from stretto_contract.normal_forms import LAST_MARK, MAX_MARKS, Form, normalized

MARKS = "\u0323\u0300"  # sorted into another order
FORMS: tuple[Form, ...] = get_args(Form)
TEXTS = ("", "plain", "Ünïcödé", "q\u0307\u0323", "한국어", "ﬁ①", "a" + MARKS * (MAX_MARKS // 2), MARKS)


@pytest.mark.parametrize("form", FORMS)
def test_usual_texts_have_their_normal_form(form: Form) -> None:
    for text in TEXTS:
        assert normalized(form, text) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("form", FORMS)
def test_a_letter_keeps_a_limited_number_of_marks(form: Form) -> None:
    shortest = unicodedata.normalize(form, "a" + MARKS * (MAX_MARKS // 2) + "b")
    assert normalized(form, "a" + MARKS * 50_000 + "b") == shortest


def test_all_marks_are_known() -> None:
    assert not any(map(unicodedata.combining, map(chr, range(LAST_MARK + 1, sys.maxunicode + 1))))
