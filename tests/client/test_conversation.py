"""Turns of a conversation have the form that the next request sends."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from stretto_client.speech_stream import Conversation

CODES = np.arange(6).reshape(2, 3)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", np.array([[0.5, 0.25], [0.0, -0.5]]), 8_000)
    return tmp_path / "a.wav"


def test_conversation_starts_with_system_prompt_and_voice(tmp_path: Path) -> None:
    np.save(tmp_path / "voice.npy", CODES)
    assert Conversation().turns == []
    assert Conversation("You are terse.").turns == [{"role": "system", "text": "You are terse."}]
    told = Conversation("You are terse.", tmp_path / "voice.npy")
    assert told.turns == [{"role": "system", "codes": CODES.tolist(), "text": "You are terse."}]


def test_conversation_reply_turn_has_its_text_and_codes() -> None:
    talk = Conversation()
    talk.add_user("hello")
    talk.add_reply("hi", CODES)
    talk.add_reply("there", None)
    talk.add_reply("", CODES)
    talk.add_reply("", None)
    assert talk.turns == [
        {"role": "user", "text": "hello"},
        {"role": "assistant", "text": "hi", "codes": CODES.tolist()},
        {"role": "assistant", "text": "there"},
        {"role": "assistant", "codes": CODES.tolist()},
    ]


def test_spoken_turns_reference_their_files_in_order(wav: Path, tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    talk = Conversation(voice=wav)
    talk.add_user("what is this?", tmp_path / "b.wav")
    talk.add_user(None, wav)
    assert talk.turns == [
        {"role": "system", "audio": "audio"},
        {"role": "user", "audio": "audio", "text": "what is this?"},
        {"role": "user", "audio": "audio"},
    ]
    assert talk.audio == [wav.read_bytes(), b"RIFF", wav.read_bytes()]


def test_removing_a_turn_removes_its_audio_file(wav: Path, tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    talk = Conversation()
    talk.add_user(None, wav)
    talk.add_user("and this?", tmp_path / "b.wav")
    talk.remove_last()
    assert (talk.turns, talk.audio) == ([{"role": "user", "audio": "audio"}], [wav.read_bytes()])
    talk.add_user("hello")
    talk.remove_last()
    assert talk.audio == [wav.read_bytes()]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("none.wav", None, OSError, "none.wav"),
        ("none.npy", None, OSError, "none.npy"),
        ("flat.npy", np.arange(3), ValueError, r"expected integer codes \[S, T\], got \(3,\) int64"),
        ("soft.npy", np.zeros((2, 3)), ValueError, r"expected integer codes \[S, T\], got \(2, 3\) float64"),
    ],
)
def test_invalid_conversation_file_is_named_and_adds_no_turn(
    tmp_path: Path, name: str, content: np.ndarray | None, error: type[Exception], message: str
) -> None:
    if content is not None:
        np.save(tmp_path / name, content)
    talk = Conversation()
    with pytest.raises(error, match=message):
        talk.add_user(None, tmp_path / name)
    assert talk.turns == []
