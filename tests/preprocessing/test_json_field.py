"""JSON from untrusted clients."""

import json
import re
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.records import json_record
from stretto.records.json_record import MAX_BYTES, MAX_DEPTH, MAX_PARTS, STRING_OR_BRACKET, measured, read_json

VALUES = st.recursive(
    st.one_of(st.none(), st.integers(-9, 9), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
)


def slow_depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(slow_depth, value.values()), default=0)
    return 1 + max(map(slow_depth, value), default=0) if isinstance(value, list) else 0


def slow_parts(value: object) -> int:
    if isinstance(value, dict):
        return 2 + len(value) + sum(map(slow_parts, value.values()))
    return 2 + sum(map(slow_parts, value)) if isinstance(value, list) else int(isinstance(value, str))


@given(VALUES)
def test_measured_json_depth_and_parts_match_the_value(value: object) -> None:
    depth, num_parts = measured(json.dumps(value))
    assert depth == min(slow_depth(value), MAX_DEPTH + 1)
    assert num_parts == slow_parts(value) or depth > MAX_DEPTH


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 9 + "]" * 9, "options: expected JSON nested at most 8 deep, got 9 levels"),
        ("[" * 10_000, "options: expected JSON nested at most 8 deep, got 9 levels or more"),
        ('"' + "a" * MAX_BYTES + '"', "options: expected at most 16384 bytes of JSON, got 16386 bytes"),
        (f"[{'[],' * 4096}[]]", "options: expected at most 8192 strings and brackets of JSON, got more"),
        ("", "options: expected valid JSON"),
        ("{,}", "options: expected valid JSON"),
        ("NaN", "options: expected finite numbers, got NaN"),
        ('{"a": -Infinity}', "options: expected finite numbers, got -Infinity"),
        ('{"a": 1, "a": 2}', "options: expected each key once"),
        ("9" * 5000, "options: expected valid JSON"),
    ],
)
def test_invalid_json_error_names_the_field(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_json("options", text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("part", ["[", "[],", '"', '"",', '{"a":', "]"])
def test_json_scanning_stops_at_the_part_limit(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    num_seen = 0

    class Counting:
        def finditer(self, text: str) -> Iterator[re.Match[str]]:
            nonlocal num_seen
            for match in STRING_OR_BRACKET.finditer(text):
                num_seen += 1
                yield match

    monkeypatch.setattr(json_record, "STRING_OR_BRACKET", Counting())
    with pytest.raises(InvalidRequest, match=r"^messages: expected (JSON nested at most 8 deep|at most 8192 strings)"):
        read_json("messages", "[" + part * 30_000, 1 << 20)
    assert num_seen <= (MAX_PARTS + 1 if part in ("[],", '"', '"",', "]") else 2 * MAX_DEPTH + 1)


def test_measuring_json_escapes_uses_bounded_memory() -> None:
    text = json.dumps("\n" * 100_000)
    tracemalloc.start()
    try:
        assert measured(text) == (0, 1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 * len(text)


def test_valid_json_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_json("options", text) == json.loads(text)
    text = f"[{'[],' * (MAX_PARTS // 2 - 2)}[]]"
    assert read_json("options", text) == json.loads(text)
    assert read_json("options", '{"a": "[[[[[[[[[[[["}') == {"a": "[[[[[[[[[[[["}
