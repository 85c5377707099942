"""Turns as the next request sends them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from client.conversation import Conversation

CODES = np.arange(6).reshape(2, 3)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", np.array([[0.5, 0.25], [0.0, -0.5]]), 8_000)
    return tmp_path / "a.wav"


def test_a_conversation_begins_with_what_the_model_is_told_and_the_voice(tmp_path: Path) -> None:
    np.save(tmp_path / "voice.npy", CODES)
    assert Conversation().turns == []
    assert Conversation("You are terse.").turns == [{"role": "system", "text": "You are terse."}]
    told = Conversation("You are terse.", tmp_path / "voice.npy")
    assert told.turns == [{"role": "system", "codes": CODES.tolist(), "text": "You are terse."}]


def test_a_reply_is_the_next_turn_with_what_is_known_of_it() -> None:
    talk = Conversation()
    talk.say("hello")
    talk.answer("hi", CODES)
    talk.answer("there", None)
    talk.answer("", CODES)
    talk.answer("", None)
    assert talk.turns == [
        {"role": "user", "text": "hello"},
        {"role": "assistant", "text": "hi", "codes": CODES.tolist()},
        {"role": "assistant", "text": "there"},
        {"role": "assistant", "codes": CODES.tolist()},
    ]


def test_the_audio_of_two_turns_finds_room_and_that_of_a_third_does_not(wav: Path) -> None:
    talk = Conversation()
    talk.say("what is this?", wav)
    talk.say(None, wav)
    assert talk.turns == [
        {"role": "user", "audio": "audio", "text": "what is this?"},
        {"role": "user", "audio": "pcm_in"},
    ]
    file, (pcm, sample_rate) = talk.audio
    assert (file, sample_rate) == (wav.read_bytes(), 8_000)
    np.testing.assert_allclose(pcm, [0.375, -0.25], atol=1e-4)
    with pytest.raises(ValueError, match=r"a\.wav: a conversation has room for the audio of two turns"):
        talk.say(None, wav)
    assert len(talk.turns) == 2


def test_a_turn_that_is_taken_back_makes_room(wav: Path) -> None:
    talk = Conversation()
    talk.say(None, wav)
    talk.say("and this?", wav)
    talk.take_back()
    assert talk.turns == [{"role": "user", "audio": "audio"}]
    talk.say("and this?", wav)
    assert talk.turns[-1]["audio"] == "pcm_in"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("none.wav", None, OSError, "none.wav"),
        ("none.npy", None, OSError, "none.npy"),
        ("flat.npy", np.arange(3), ValueError, r"expected integer codes \[S, T\], got \(3,\) int64"),
        ("soft.npy", np.zeros((2, 3)), ValueError, r"expected integer codes \[S, T\], got \(2, 3\) float64"),
    ],
)
def test_a_file_that_cannot_be_said_is_named_and_adds_nothing(
    tmp_path: Path, name: str, content: np.ndarray | None, error: type[Exception], message: str
) -> None:
    if content is not None:
        np.save(tmp_path / name, content)
    talk = Conversation()
    with pytest.raises(error, match=message):
        talk.say(None, tmp_path / name)
    assert talk.turns == []


def test_a_second_file_that_is_no_audio_is_named(tmp_path: Path, wav: Path) -> None:
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    talk = Conversation()
    talk.say(None, wav)
    with pytest.raises(ValueError, match=r"b\.wav"):
        talk.say(None, tmp_path / "b.wav")
    assert len(talk.turns) == len(talk.audio) == 1
