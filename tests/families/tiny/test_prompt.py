"""Prompts of the bundled model, row by row."""

import numpy as np
import pytest

from stretto.errors import InvalidRequest
from stretto.families.tiny.family import (
    ASR,
    BEGIN_AUDIO,
    BEGIN_TEXT,
    CHARACTERS,
    FIRST_CHARACTER,
    FIRST_CODE,
    FRAME_INDEX_BASE,
    LAYOUT,
    PAD,
    TINY,
    TTS,
    VOICES,
)
from stretto.families.tiny.prompt import MAX_FRAME_ROWS, TinyTemplate
from stretto.families.tiny.recording import extract_speech, speech_bounds
from stretto.family.prompting import Manner, Piece
from tests.fakes import FrameCounter
from tests.recordings import sentence

TEMPLATE = TinyTemplate(FrameCounter())
RATE = 16_000
SPEECH = sentence(RATE)
OTHERS = "text: expected English in Latin script, or options.transliterate=true to transliterate other scripts, "


def test_tiny_text_prompt_is_voice_and_characters() -> None:
    rows, words = TEMPLATE.speak("It's 2.", "heart")
    assert words == ("it's", "two")
    assert rows.shape == (12, 9)
    assert (rows[:, 1:] == PAD).all()
    assert rows[:2, 0].tolist() == [TTS, VOICES["heart"]]
    assert "".join(CHARACTERS[token_id - FIRST_CHARACTER] for token_id in rows[2:-1, 0]) == "it's two."
    assert rows[-1, 0] == BEGIN_TEXT


def test_audio_prompt_is_delayed_codes_with_row_ordinals() -> None:
    codes = np.arange(14).reshape(7, 2)
    rows = TEMPLATE.listen(codes)
    assert rows.shape == (2 + 2 + LAYOUT.max_delay + 1, 9)
    assert rows[[0, 1, -1], 0].tolist() == [ASR, BEGIN_AUDIO, BEGIN_TEXT]
    audio = rows[2:-1]
    assert (audio[:, 0] == PAD).all()
    assert audio[:, 8].tolist() == [FRAME_INDEX_BASE + 1 + row for row in range(11)]
    for codebook in range(7):
        for frame in range(2):
            assert audio[frame + 3 + codebook, 1 + codebook] == FIRST_CODE + 256 * codebook + codes[codebook, frame]
    assert (audio[:, 1:8] != PAD).sum() == 14
    assert (rows[[0, 1, -1], 1:] == PAD).all()


def test_index_table_is_never_overrun() -> None:
    longest = MAX_FRAME_ROWS - LAYOUT.max_delay
    assert TEMPLATE.listen(np.zeros((7, longest), int))[-2, 8] == FIRST_CODE - 1
    with pytest.raises(AssertionError):
        TEMPLATE.listen(np.zeros((7, longest + 1), int))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: expected text with a word that can be spoken, got ''"),
        ("... !", "text: expected text with a word that can be spoken, got '... !'"),
        ("😀", "text: expected text with a word that can be spoken, got '😀'"),
        ("a" * 301, "text: expected at most 300 characters, got 301 characters"),
        ("say 你好，世界!", OTHERS + "got Chinese characters in '你好，世界!'"),
        ("Привет", OTHERS + "got Cyrillic letters (Russian and others) in 'Привет'"),
        ("καλημέρα", OTHERS + "got Greek letters in 'καλημέρα'"),
        ("नमस्ते दुनिया", OTHERS + "got Devanagari letters (Hindi and others) in 'नमस्ते'"),
        ("안녕하세요 hello", OTHERS + "got Korean letters in '안녕하세요'"),
        ("777 " * 40, "text: expected at most 300 characters once written out in words, got 1279 characters"),
        (
            "\ua672" * 160,
            "text: expected at most 1200 characters once converted to ASCII, got 1600 characters",
        ),  # 1,000,000,000 each
    ],
)
def test_unspeakable_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TEMPLATE.speak(text, "heart")
    assert str(caught.value) == message


def test_other_scripts_are_transliterated_only_on_request() -> None:
    assert TEMPLATE.speak("say 你好", "heart", transliterates=True)[1] == ("say", "nihao")
    piece = (Piece("user", "text", text="Привет"),)
    assert TEMPLATE.write(TINY.task("tts"), piece, "heart", Manner(transliterates=True)).words == ("privet",)
    with pytest.raises(InvalidRequest, match="Cyrillic"):
        TEMPLATE.write(TINY.task("tts"), piece, "heart")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Łódź, naïve café, Ångström", "lodz naive cafe angstrom"),  # accents
        ("ʻOkina Ｈｉ 𝐛𝐨𝐥𝐝", "okina hi bold"),  # other forms of Latin letters
        ("π and Δt, β-carotene", "pi and delta tee beta carotene"),  # Greek symbols
        ("in Tokyo (東京), near Αθήνα", "in tokyo dongjing near athina"),  # names
        ("¯\\_(ツ)_/¯ well ಠ_ಠ (づ｡◕‿‿◕｡)づ", "well"),  # faces
        ("٣ apples at 20 ℃", "three apples at twenty degrees celsius"),  # digits and signs
    ],
)
def test_accents_symbols_and_foreign_digits_are_normalised(text: str, words: str) -> None:
    assert " ".join(TEMPLATE.speak(text, "heart")[1]) == words


def test_text_and_audio_pieces_become_tts_and_asr_prompts() -> None:
    spoken = TEMPLATE.write(TINY.task("tts"), (Piece("user", "text", text="It's 2."),), "heart")
    rows, words = TEMPLATE.speak("It's 2.", "heart")
    assert np.array_equal(spoken.rows, rows)
    assert spoken.words == words
    heard = TEMPLATE.write(TINY.task("asr"), (Piece("user", "audio", pcm=SPEECH),), None)
    speech = extract_speech(SPEECH, RATE)
    assert speech is not None
    assert np.array_equal(heard.rows, TEMPLATE.listen(FrameCounter().encode(speech)))
    assert not heard.has_empty_reply


@pytest.mark.parametrize("before", [0, 16_000])
@pytest.mark.parametrize("after", [0, 8_000, 16_000])
def test_speech_is_found_in_silence(before: int, after: int) -> None:
    speech = np.full(6_400, 0.5, np.float32)
    padded = np.concatenate([np.zeros(before, np.float32), speech, np.full(after, 1e-4, np.float32)])
    assert speech_bounds(padded, RATE) == (before, before + 6_400)


@pytest.mark.parametrize("before", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("after", [0.0, 0.1, 0.5])
def test_speech_has_0_3_s_of_silence_at_both_ends(before: float, after: float) -> None:
    first, last = speech_bounds(SPEECH, RATE)
    silence = [np.zeros(round(seconds * RATE), np.float32) for seconds in (before, after)]
    found = extract_speech(np.concatenate([silence[0], SPEECH[first:last], silence[1]]), RATE)
    margin = round(0.3 * RATE)
    assert found is not None
    assert len(found) == last - first + 2 * margin
    for end in (found[:margin], found[-margin:]):
        assert np.abs(end).max() < 1e-3 * np.abs(found).max()


@pytest.mark.parametrize("decibels", [-60, -30, -15, -6, 6])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_speech_of_any_level_is_encoded_at_the_same_level(decibels: int, offset: float) -> None:
    expected = extract_speech(SPEECH, RATE)
    found = extract_speech((SPEECH * 10 ** (decibels / 20) + offset).astype(np.float32), RATE)
    assert expected is not None
    assert found is not None
    assert len(found) == len(expected)
    assert np.abs(found - expected).max() < 1e-3  # 60 dB below the speech


def test_clicks_do_not_change_the_level_of_speech() -> None:
    clicked = np.pad(SPEECH * 0.03, (0, 3 * RATE)).astype(np.float32)
    clicked[len(SPEECH) + RATE :: RATE // 2] = 0.9
    expected, found = extract_speech(SPEECH, RATE), extract_speech(clicked, RATE)
    assert expected is not None
    assert found is not None
    num = min(len(expected), len(found), len(SPEECH) - RATE)
    assert np.abs(found[:num] - expected[:num]).max() < 0.05 * np.abs(expected).max()


def noises() -> dict[str, np.ndarray]:
    """Return 3 s each of sounds without speech, float64 at RATE."""
    rng, time = np.random.default_rng(0), np.arange(3 * RATE) / RATE
    white = rng.standard_normal(3 * RATE)
    shape = np.fft.rfftfreq(3 * RATE, 1 / RATE)
    pink = np.fft.irfft(np.fft.rfft(white) / np.sqrt(np.maximum(shape, 1)), 3 * RATE)
    breath = np.fft.irfft(np.fft.rfft(white) * ((shape > 300) & (shape < 4000)), 3 * RATE)
    clicks = np.zeros(3 * RATE)
    clicks[::4000] = 0.9
    keys = [(697, 1209), (770, 1336), (852, 1477), (941, 1336)]
    tones = [sum(np.sin(2 * np.pi * hz * time[:2400]) for hz in keys[at % 4]) * (at % 2) for at in range(20)]
    return {
        "zeros": np.zeros(3 * RATE),
        "offset": np.full(3 * RATE, 0.1),
        "16-bit noise": np.rint(white) / 32768,
        "hum": sum(np.sin(2 * np.pi * 50 * k * time) / k**2 for k in (1, 2, 3)) * 0.1,
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
        "ringing": 0.2 * np.sin(2 * np.pi * 425 * time) * (time % 1.5 < 0.5),
        "white noise": 0.1 * white,
        "pink noise": 10 * pink,
        "clicks": clicks,
        "DTMF": 0.3 * np.concatenate(tones),
        "breath": 0.2 * breath * np.maximum(np.sin(2 * np.pi * time / 1.5), 0) ** 2,
        "chord": 0.1 * sum(np.sin(2 * np.pi * hz * time) for hz in (261.6, 329.6, 392)),
    }


@pytest.mark.parametrize("kind", list(noises()))
def test_recording_without_speech_has_an_empty_transcript(kind: str) -> None:
    for level in (1.0, 0.01):
        pcm = (noises()[kind] * level).astype(np.float32)
        written = TEMPLATE.write(TINY.task("asr"), (Piece("user", "audio", pcm=pcm),), None)
        assert written.has_empty_reply
        assert written.rows[:, 0].tolist() == [ASR, BEGIN_AUDIO, BEGIN_TEXT]


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.02])
@pytest.mark.parametrize("click", [False, True])
def test_noise_and_clicks_around_speech_are_trimmed(noise: float, click: bool) -> None:
    rng = np.random.default_rng(0)
    speech = np.sin(np.arange(8_000) / 3) * 0.3
    pcm = np.concatenate([np.zeros(16_000), speech, np.zeros(48_000)]) + noise * rng.standard_normal(72_000)
    if click:
        pcm[[4_000, 64_000]] = 1.0
    assert speech_bounds(pcm.astype(np.float32), RATE) == (16_000, 24_000)


@pytest.mark.parametrize("num", [0, 1, 319, 960, 16_000])
def test_recordings_without_speech_are_not_trimmed(num: int) -> None:
    rng = np.random.default_rng(0)
    for pcm in (np.zeros(num), rng.standard_normal(num) * 0.1):
        assert speech_bounds(pcm.astype(np.float32), RATE) == (0, num)


def test_tiny_asr_refuses_codes() -> None:
    piece = Piece("user", "messages[0].codes", codes=np.zeros((7, 3), int))
    with pytest.raises(InvalidRequest, match=r"messages\[0\].codes: expected audio samples"):
        TEMPLATE.write(TINY.task("asr"), (piece,), None)
