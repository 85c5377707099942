"""JSON from strangers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.preprocessing.json_field import MAX_BYTES, MAX_DEPTH, nesting, read_json

VALUES = st.recursive(
    st.one_of(st.none(), st.integers(-9, 9), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
)


def slow_depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(slow_depth, value.values()), default=0)
    return 1 + max(map(slow_depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES)
def test_depth_is_that_of_the_value(value: object) -> None:
    assert nesting(json.dumps(value)) == slow_depth(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 9 + "]" * 9, "options: expected JSON nested at most 8 deep, got 9 levels"),
        ("[" * 10_000, "options: expected JSON nested at most 8 deep, got 10000 levels"),
        ('"' + "a" * MAX_BYTES + '"', "options: expected at most 16384 bytes of JSON, got 16386 bytes"),
        ("", "options: expected valid JSON"),
        ("{,}", "options: expected valid JSON"),
        ("NaN", "options: expected finite numbers, got NaN"),
        ('{"a": -Infinity}', "options: expected finite numbers, got -Infinity"),
        ('{"a": 1, "a": 2}', "options: expected each key once"),
        ("9" * 5000, "options: expected valid JSON"),
    ],
)
def test_bad_json_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_json("options", text)
    assert str(caught.value).startswith(message)


def test_good_json_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_json("options", text) == json.loads(text)
    assert read_json("options", '{"a": "[[[[[[[[[[[["}') == {"a": "[[[[[[[[[[[["}
