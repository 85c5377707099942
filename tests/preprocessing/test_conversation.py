"""Selection of the task that answers a conversation."""

import pytest

from stretto.errors import InvalidRequest
from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.family.plugin import read_family
from stretto.family.prompting import Turn, choose_task, read_messages

BAGPIPER, OPUSLM, DIALOGUE = (
    read_family({"speech_family": name}) for name in ("bagpiper", "opuslm", "opuslm_dialogue")
)
HELLO, HEARD = Turn(text="hello"), Turn(audio_input="audio")
QUESTION = Turn(text="What is this?", audio_input="audio")


def turns(*contents: str) -> tuple[Turn, ...]:
    """Return turns from texts `role:kinds`, such as `user:text+audio`."""
    records = []
    for content in contents:
        role, kinds = content.split(":")
        keys = {"text": '"text": "hello"', "audio": '"codes": [[0]]'}
        records.append(f'{{"role": "{role}", {", ".join(keys[kind] for kind in kinds.split("+"))}}}')
    return read_messages(f"[{', '.join(records)}]")


@pytest.mark.parametrize(
    ("family", "given", "task"),
    [
        (TINY, (HELLO,), "tts"),
        (TINY, (HEARD,), "asr"),
        (BAGPIPER, (HELLO,), "tts"),
        (BAGPIPER, (HEARD,), "understand"),
        (BAGPIPER, (QUESTION,), "understand"),
        (BAGPIPER, turns("user:audio", "user:text"), "understand"),
        (BAGPIPER, turns("system:text", "user:text"), "chat"),
        (BAGPIPER, turns("user:audio+text", "assistant:text", "user:text"), "chat"),
        (OPUSLM, (HELLO,), "tts"),
        (OPUSLM, turns("system:audio", "user:text"), "tts"),
        (OPUSLM, (HEARD,), "asr"),
        (DIALOGUE, (HELLO,), "dialogue"),
        (DIALOGUE, turns("system:audio", "user:audio+text"), "dialogue"),
        (DIALOGUE, turns("user:audio", "assistant:text"), "speak"),
    ],
)
def test_default_task_is_the_first_that_accepts_the_input(family: Family, given: tuple[Turn, ...], task: str) -> None:
    assert choose_task(None, given, family).name == task


@pytest.mark.parametrize(
    ("family", "given", "task"),
    [
        (BAGPIPER, turns("user:text", "assistant:text+audio", "user:text"), "chat"),
        (BAGPIPER, turns("user:text", "user:text"), "chat"),
        (BAGPIPER, (QUESTION,), "generate"),
        (OPUSLM, (HEARD,), "audio_lm"),
        (DIALOGUE, turns("system:audio", "user:audio"), "asr"),
        (DIALOGUE, turns("user:text", "assistant:text", "user:text"), "text_dialogue"),
    ],
)
def test_task_is_chosen_from_the_conversation_turns(family: Family, given: tuple[Turn, ...], task: str) -> None:
    assert choose_task(task, given, family).name == task


@pytest.mark.parametrize(
    ("family", "given", "task", "message"),
    [
        (TINY, (HELLO,), "sing", "task: expected one of tts, asr, got 'sing'"),
        (TINY, (HELLO,), "asr", "audio: expected audio for task 'asr', got text"),
        (TINY, (QUESTION,), "asr", "text: expected only audio for task 'asr', got audio and text"),
        (TINY, turns("user:text", "assistant:text", "user:text"), None, "messages[1].role: expected 'user' for task"),
        (
            BAGPIPER,
            turns("user:text", "assistant:text"),
            None,
            "messages[1].role: expected 'user' in the last turn for",
        ),
        (BAGPIPER, turns("system:audio", "user:text"), None, "messages[0]: expected only text for task 'understand'"),
        (
            BAGPIPER,
            turns("system:text", "user:text"),
            "tts",
            "messages[0].role: expected 'user' for task 'tts', got 's",
        ),
        (BAGPIPER, turns("system:text"), "chat", "messages[0].role: expected 'user' in the last turn for task 'chat'"),
        (BAGPIPER, turns("user:text", "assistant:text"), "chat", "messages[1].role: expected 'user' in the last turn"),
        (BAGPIPER, turns("system:audio", "user:text"), "chat", "messages[0]: expected only text for task 'chat', got"),
        (BAGPIPER, turns("user:text"), "understand", "messages[0]: expected audio for task 'understand', got text"),
        (OPUSLM, turns("system:text", "user:text"), "tts", "messages[0]: expected only audio for task 'tts', got text"),
        (OPUSLM, turns("user:text", "user:text"), "tts", "messages[1]: expected at most one text and one audio for"),
        (DIALOGUE, turns("user:audio"), "text_dialogue", "messages[0]: expected text for task 'text_dialogue', got au"),
        (DIALOGUE, turns("user:text"), "speak", "messages[0].role: expected 'assistant' in the last turn for task"),
        (DIALOGUE, (HELLO,), "speak", "messages: expected 'assistant' in the last turn for task 'speak', got 'user'"),
    ],
)
def test_error_names_unsupported_turns(family: Family, given: tuple[Turn, ...], task: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose_task(task, given, family)
    assert str(caught.value).startswith(message)
