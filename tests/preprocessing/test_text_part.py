"""Valid and hostile parts of streamed text."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.preprocessing.request import RawRequest, read_part
from stretto.records.prompt import MAX_PART_CHARS, TextPart

RECORD = {"id": "name", "part": 3, "is_last": False}


def raw(text: Any = "more", **changes: Any) -> RawRequest:
    kept = {key: value for key, value in (RECORD | changes).items() if value is not ...}
    return RawRequest(text=text, session=json.dumps(kept))


def test_text_part_is_read_and_round_trips() -> None:
    part = read_part(raw("caf\u00e9 \U0001f642", is_last=True))
    assert part == TextPart("name", 3, "caf\u00e9 \U0001f642", True)
    assert TextPart.from_bytes("prompt", part.to_bytes()) == part
    assert read_part(raw("")).text == "", "nothing may be added, to say that somebody still writes"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (raw(None), "text: expected the next part of the text, or '' to add none, got none"),
        (raw("x" * (MAX_PART_CHARS + 1)), "text: expected at most 4096 characters, got 4097 characters"),
        (raw("\ud800"), "text: expected text without lone surrogates"),
        (raw(b"\xc3"), "text: expected UTF-8, got a byte 0xc3 at 0"),
        (raw(id=...), "session.id: expected the session id in the reply's first event, got none"),
        (raw(id=""), "session.id: expected the session id in the reply's first event, got ''"),
        (raw(part=-1), "session.part: expected an integer in [0, 2^31), got -1"),
        (raw(resume=3), "session.resume: expected no value (only live audio can be resumed), got 3"),
        (raw(part="1"), "session.part: expected an integer in [0, 2^31), got '1'"),
        (raw(is_last=1), "session.is_last: expected true or false, got 1"),
        (raw(voice="eric"), "session.voice: expected one of id, is_last, part, resume, got an unknown key"),
        (RawRequest(text="a", session="[]"), "session: expected a JSON object, got []"),
        (RawRequest(text="a", session=b"\xff"), "session: expected UTF-8"),
        (RawRequest(text="a", session="{}", options="{}"), "options: expected no value with session"),
        (RawRequest(session="{}", pcm_in=np.zeros(1, np.float32)), "pcm_in: expected no value with session"),
    ],
)
def test_invalid_text_parts_are_refused_by_field(given: RawRequest, message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_part(given)
    assert str(refusal.value).startswith(message)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3))
RECORDS = st.dictionaries(st.sampled_from(["id", "part", "is_last", "x"]), VALUES, max_size=4).map(json.dumps)
TEXT = st.text(max_size=9) | st.binary(max_size=9)


@pytest.mark.slow
@given(session=RECORDS | st.text(max_size=40) | st.binary(max_size=40), text=TEXT)
def test_any_text_part_parses_or_is_refused_by_field(session: str | bytes, text: str | bytes) -> None:
    refused = None
    try:
        part = read_part(RawRequest(text=text, session=session))
    except InvalidRequest as error:
        refused = re.split(r"[.\[]", error.field)[0]
    else:
        assert TextPart.from_bytes("prompt", part.to_bytes()) == part
    assert refused in (None, "session", "text")
