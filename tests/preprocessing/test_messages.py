"""Dialogues of one turn, and the ones that are refused."""

import json

import pytest

from python_backend.errors import InvalidRequest
from python_backend.preprocessing.messages import Turn, read_messages


def test_a_user_turn_is_text_or_names_the_audio_input() -> None:
    assert read_messages('[{"role": "user", "text": "hello"}]') == Turn(text="hello")
    assert read_messages('[{"role": "user", "audio": "pcm_in"}]') == Turn(audio_input="pcm_in")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ({"role": "user"}, "messages: expected a JSON list of turns"),
        ([], "messages: expected one turn, the user's, got 0 turns"),
        ([{}, {}], "messages: expected one turn, the user's, got 2 turns"),
        (["hello"], "messages[0]: expected a JSON object with role and text or audio, got 'hello'"),
        ([{"text": "hello"}], "messages[0].role: expected 'user', got None"),
        ([{"role": "system", "text": "hello"}], "messages[0].role: expected 'user', got 'system'"),
        ([{"role": "user"}], "messages[0]: expected role and either text or audio, got ['role']"),
        ([{"role": "user", "text": "a", "audio": "audio"}], "messages[0]: expected role and either"),
        ([{"role": "user", "text": 5}], "messages[0].text: expected a string, got 5"),
        ([{"role": "user", "audio": "a.wav"}], "messages[0].audio: expected one of audio, pcm_in, got 'a.wav'"),
        ([{"role": "user", "audio": ["audio"]}], "messages[0].audio: expected one of audio, pcm_in, got ['audio']"),
        ([[[[[[[[[0]]]]]]]]], "messages: expected JSON nested at most 8 deep, got 9 levels"),
    ],
)
def test_any_other_dialogue_is_refused_by_name(messages: object, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_messages(json.dumps(messages))
    assert str(caught.value).startswith(message)
