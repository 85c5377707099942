"""Training sequences against handwritten examples."""

import numpy as np
import pytest

from stretto.families.tiny import family as tiny
from training.tiny import builders
from training.tiny.encoded import Spoken, Transcript
from training.tiny.sequences import CHARACTER_ID, SPACE, Head
from training.tiny.teacher import PHONEME_ID


def phoneme(name: str) -> int:
    return tiny.FIRST_PHONEME + PHONEME_ID[name]


@pytest.fixture
def spoken() -> Spoken:
    """Return `up at` (pau ah p | ae t pau) in seven frames, with a first silence of two frames."""
    names = "pau ah p ae t pau".split()
    transcript = Transcript("up at", tuple(PHONEME_ID[name] for name in names), (-1, 0, 0, 1, 1, -1))
    return Spoken(transcript, "heart", np.asarray([0, 0, 1, 2, 3, 4, 5]))


TEXT = [
    tiny.TTS, tiny.VOICES["heart"], *(CHARACTER_ID[c] for c in "up at"), tiny.BEGIN_TEXT, phoneme("pau"), phoneme("ah"),
    phoneme("p"), SPACE, phoneme("ae"), phoneme("t"), phoneme("pau"), tiny.END_OF_TEXT,
]  # fmt: skip


def frame(name: str, continues: int) -> int:
    return tiny.FIRST_FRAME_TOKEN + 2 * PHONEME_ID[name] + continues


def test_tts_rows_are_characters_then_phonemes_then_delayed_frames(spoken: Spoken) -> None:
    rows = builders.tts(spoken)
    frames = [frame("pau", 0), frame("pau", 1), *(frame(name, 0) for name in "ah p ae t pau".split())]
    drain = [tiny.END_OF_AUDIO, *[tiny.PAD] * 7, tiny.END_OF_REPLY]
    assert rows.stream_0.tolist() == [*TEXT, tiny.BEGIN_AUDIO, *frames, *drain]
    ordinals = [0] * 8 + [1, 2, 3, 0, 4, 5, 6, 0] + [0] + [1, 1, 2, 3, 4, 5, 6] + [0] * 9
    assert rows.index.tolist() == [tiny.PHONEME_INDEX_BASE + o if o else tiny.PAD for o in ordinals]
    assert (rows.audio, rows.frames, rows.speaks) == (len(TEXT) + 1, 7, True)


def test_frames_attend_to_their_phoneme_and_the_next(spoken: Spoken) -> None:
    rows = builders.tts(spoken)
    audio, this, following = len(TEXT) + 1, [8, 8, 9, 10, 12, 13, 14], [9, 9, 10, 12, 13, 14, None]
    assert rows.look[audio : audio + 7, Head.THIS_PHONEME].tolist() == [[row, row + 1] for row in this]
    spans = [[row, row + 1] if row else [0, 0] for row in following]
    assert rows.look[audio : audio + 7, Head.NEXT_PHONEME].tolist() == spans


def test_asr_rows_are_audio_then_phonemes_then_characters(spoken: Spoken) -> None:
    rows = builders.asr(spoken)
    audio = 7 + 9
    head = [tiny.ASR, tiny.BEGIN_AUDIO, *[tiny.PAD] * audio, tiny.BEGIN_TEXT]
    written = [tiny.SEPARATOR, *(CHARACTER_ID[c] for c in "up at"), tiny.END_OF_REPLY]
    assert rows.stream_0.tolist() == [*head, *TEXT[8:-1], *written]
    assert rows.index[2 : 2 + audio].tolist() == [tiny.FRAME_INDEX_BASE + row + 1 for row in range(audio)]
    assert rows.target[len(head) - 1 : -1].tolist() == rows.stream_0[len(head) :].tolist()
    assert (rows.audio, rows.frames, rows.speaks) == (2, 7, False)
