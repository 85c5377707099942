"""Conversations in JSON, and conversations that are refused."""

import json

import pytest

from stretto.errors import InvalidRequest
from stretto.family.prompting import MAX_BYTES, MAX_STREAMS, MAX_TURNS, Turn, read_messages


def test_a_turn_is_text_or_names_the_audio_input() -> None:
    assert read_messages('[{"role": "user", "text": "hello"}]') == (Turn(text="hello"),)
    assert read_messages('[{"role": "user", "audio": "pcm_in"}]') == (Turn(audio_input="pcm_in"),)


def test_message_turns_keep_their_order_and_position() -> None:
    turns = read_messages(
        """[{"role": "system", "text": "You are terse."}, {"role": "user", "audio": "audio", "text": "What is this?"},
            {"role": "assistant", "text": "Rain.", "codes": [[1, 2]]},
            {"role": "user", "codes": [[3, 4, 5], [6, 7, 8]]}]"""
    )
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]
    assert [turn.kinds for turn in turns] == [("text",), ("audio", "text"), ("text", "audio"), ("audio",)]
    assert [turn.where("audio") for turn in turns[1:3]] == ["messages[1].audio", "messages[2].codes"]
    assert turns[3].codes is not None
    assert turns[3].codes.tolist() == [[3, 4, 5], [6, 7, 8]]


def test_message_with_a_minute_of_codes_is_read() -> None:
    codes = [[1023] * 3000] * 9
    (turn,) = read_messages(json.dumps([{"role": "user", "codes": codes}]))
    assert turn.codes is not None
    assert turn.codes.shape == (9, 3000)


def test_maximum_turns_and_streams_are_read() -> None:
    turn = {"role": "user", "text": "hello", "codes": [[1023] * 50] * MAX_STREAMS}
    turns = read_messages(json.dumps([turn] * MAX_TURNS))
    assert len(turns) == MAX_TURNS
    assert turns[-1].codes is not None


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ({"role": "user"}, "messages: expected a JSON list of 1 to 64 turns, got {'role': 'user'}"),
        ([], "messages: expected a JSON list of 1 to 64 turns, got 0"),
        ([{}] * 65, "messages: expected a JSON list of 1 to 64 turns, got 65"),
        (["hello"], "messages[0]: expected a JSON object with role and text, image or audio, got 'hello'"),
        ([{"text": "hello"}], "messages[0].role: expected one of system, user, assistant, got none"),
        ([{"role": "tool", "text": "hello"}], "messages[0].role: expected one of system, user, assistant, got 'tool'"),
        (
            [{"role": "user"}],
            "messages[0]: expected role, and at least one of text, image and audio (or codes or latents), got ['role']",
        ),
        (
            [{"role": "user", "text": "a", "image": "b"}],
            "messages[0].image: expected image, the input with the file, got 'b'",
        ),
        ([{"role": "user", "audio": "audio", "codes": [[1]]}], "messages[0]: expected role, and at least one of"),
        ([{"role": "user", "codes": [[1]], "latents": "AAAA"}], "messages[0]: expected role, and at least one of"),
        ([{"role": "user", "latents": [[1.0]]}], "messages[0].latents: expected base64 of float32 [D, T], got [[1.0]]"),
        ([{"role": "user", "latents": "AAA"}], "messages[0].latents: expected base64 of float32 [D, T], got 'AAA'"),
        ([{"role": "user", "latents": "AAAA"}], "messages[0].latents: expected base64 of float32 [D, T], got 3 bytes"),
        ([{"role": "user", "text": 5}], "messages[0].text: expected a string, got 5"),
        ([{"role": "user", "audio": "a.wav"}], "messages[0].audio: expected one of audio, pcm_in, got 'a.wav'"),
        (
            [{"role": "user", "audio": "pcm_in"}] * 2,
            "messages[1].audio: expected 'pcm_in' in one turn only, and 'audio' in the others, got a second 'pcm_in'",
        ),
        (
            [{"role": "user", "text": "a"}, {"role": "system", "text": "b"}],
            "messages[1].role: expected user or assistant (only the first turn can be a system turn), got 'system'",
        ),
        ([{"role": "user", "codes": [1, 2]}], "messages[0].codes[0]: expected a list of at least one code, got 1"),
        ([{"role": "user", "codes": []}], "messages[0].codes: expected 1 to 33 lists of codes"),
        (
            [{"role": "user", "codes": [[1]] * 34}],
            "messages[0].codes: expected 1 to 33 lists of codes, one for each stream",
        ),
        (
            [{"role": "user", "codes": [[1], [1, 2]]}],
            "messages[0].codes: expected the same number of codes for each stream",
        ),
        ([{"role": "user", "codes": [[]]}], "messages[0].codes[0]: expected a list of at least one code, got 0"),
        (
            [{"role": "user", "codes": [[1], [-1]]}],
            "messages[0].codes[1][0]: expected an integer in [0, 1048576]",
        ),
        ([{"role": "user", "codes": [[1.0]]}], "messages[0].codes[0][0]: expected an integer in [0, 1048576], got 1.0"),
        ([{"role": "user", "text": "\ud800"}], "messages: expected valid JSON, got an error: unexpected end of hex"),
        ([{"role": "user", "text": "a" * MAX_BYTES}], "messages: expected at most 1048576 bytes of JSON"),
    ],
)
def test_invalid_messages_error_names_the_field(messages: object, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_messages(json.dumps(messages))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400
