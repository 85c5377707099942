"""The gateway's limits on JSON options equal the server's limits."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.records import json_record
from stretto_contract import schema
from stretto_gateway.answers import ApiError
from stretto_gateway.fields import (
    MAX_BYTES,
    MAX_DEPTH,
    OBJECT_BYTES,
    SMALL_BYTES,
    check_options_size,
    held_bytes,
    most_bytes,
)
from stretto_gateway.socket_session import MAX_VALUES, num_values, read_json
from stretto_gateway.speech_request import OPTIONS, SpeechRequest

LONG = st.sampled_from((-0.0, 1e308, "\U0001f600", 10**40))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | LONG


def nested(depth: int) -> list[Any]:
    """Return lists nested to this depth."""
    return json.loads("[" * depth + "]" * depth)


def test_option_json_limits_match_the_server() -> None:
    assert (MAX_BYTES, MAX_DEPTH) == (json_record.MAX_BYTES, json_record.MAX_DEPTH)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"text": "a" * (MAX_BYTES - 12)}, None),
        ({"text": "a" * (MAX_BYTES - 11)}, "text"),
        ({"seed": 1, "text": "\u00e9" * 2730}, "text"),
        ({"seed": 1, "text": "a" * 9000, "audio": "a" * 9000, "schedule": 1}, "audio"),
        ({"schedule": nested(MAX_DEPTH - 1)}, None),
        ({"schedule": nested(MAX_DEPTH)}, "schedule"),
        ({"schedule": nested(500)}, "schedule"),
        ({"guidance": {"a": [{"b": [{"c": [{}]}]}]}}, None),
        ({"guidance": {"a": [{"b": [{"c": [{"d": []}]}]}]}}, "guidance"),
        ({"schedule": [[]] * 100_000}, "schedule"),
    ],
)
def test_gateway_option_limits_match_the_server(options: dict[str, Any], param: str | None) -> None:
    text = json.dumps(options)
    if param is None:
        check_options_size(options)
        assert json_record.read_json("options", text) == options
        return
    with pytest.raises(InvalidRequest):
        json_record.read_json("options", text)
    with pytest.raises(ApiError) as raised:
        check_options_size(options)
    assert raised.value.param == param
    assert raised.value.message.startswith(f"{param}: expected ")


def test_speech_request_fields_match_the_options_schema() -> None:
    fields = SpeechRequest.model_json_schema()["properties"]
    assert set(OPTIONS) == schema.SpeechOptions.__annotations__.keys() - {"output", "instruct"}
    assert set(OPTIONS) <= fields.keys()
    assert fields["seed"]["anyOf"] == [{"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}, {"type": "null"}]
    assert fields["chunking"]["anyOf"][0]["properties"]["playout_s"]["maximum"] == schema.MAX_PLAYOUT_S
    assert "Random by default" in fields["seed"]["description"]


@pytest.mark.slow
@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_size_bound_is_never_exceeded(value: Any) -> None:
    assert len(json.dumps(value)) <= most_bytes(value)


def test_options_memory_is_counted_above_a_small_size() -> None:
    assert held_bytes({"seed": 3, "text": {"top_k": 2}}) == 0
    assert held_bytes({"text": "a" * 2 * SMALL_BYTES}) == OBJECT_BYTES * (SMALL_BYTES + 12)


@pytest.mark.parametrize("said", ["[{,", '\\"[', "[\\"])
def test_json_event_value_count_is_limited(said: str) -> None:
    event = {"type": "input.text", "text": said * MAX_VALUES, "last": [1, 2]}
    assert num_values(json.dumps(event)) == 5, "those that may open something, and commas"
    assert read_json(json.dumps(event)) == event
    with pytest.raises(ApiError, match=f"at most {MAX_VALUES} values"):
        read_json(json.dumps(event | {"last": [1] * MAX_VALUES}))
