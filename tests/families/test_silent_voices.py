"""Silent recordings of voices are refused."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import VOICE_DB, check_voice
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.encoders.recordings import speech
from tests.fakes import FrameCounter
from tests.published_qwen3_tts import Checkpoint

RATE = 24_000
VOICE = speech(2.0)[: 2 * RATE].astype(np.float32)
VOICE /= 2 * np.abs(VOICE).max()
NOISE = np.random.default_rng(0)


# Recordings without a voice, and their levels in dBFS as reported.
SILENT: dict[str, tuple[np.ndarray, int]] = {
    "zeros": (np.zeros(2 * RATE), -120),
    "constant": (np.full(2 * RATE, 0.3), -120),
    "noise of 16 bits": (NOISE.triangular(-1, 0, 1, 2 * RATE) / 32_768, -94),
    "voice at -90 dB": (VOICE * 10**-4.5, -101),
    "click": (np.eye(1, 2 * RATE, RATE)[0], -120),
}


def file(channels: np.ndarray) -> bytes:
    """Return a WAV file with channels [C, n]."""
    buffer = BytesIO()
    soundfile.write(buffer, channels.T, RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_quiet_or_inverted_recordings_are_voices(tmp_path: Path) -> None:
    preprocessor = Preprocessor(Checkpoint(tmp_path, "base").folder, FrameCounter(1920, 4, 32, RATE))
    turns = json.dumps([{"role": "system", "audio": "audio"}, {"role": "user", "text": "hello"}])
    voices = [
        preprocessor.prepare(RawRequest(messages=turns, audio=file(np.stack(channels)))).audios[0].features
        for channels in ([VOICE], [VOICE * 10**-2.5], [VOICE, -VOICE], [0 * VOICE, VOICE])
    ]
    assert not np.array_equal(voices[0], voices[1])
    assert np.array_equal(voices[0], voices[2])
    assert np.array_equal(voices[0], voices[3])


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
def test_level_of_a_silent_recording_is_reported(name: str, rate: int) -> None:
    pcm, level = SILENT[name]
    with pytest.raises(InvalidRequest) as refused:
        check_voice(pcm.astype(np.float32), rate, "ref_audio")
    found = int(str(refused.value).split("silence: ")[1].split(" dBFS")[0])
    assert found == pytest.approx(level, abs=4)
    assert str(refused.value).endswith(f" dBFS in its loudest 0.1 s, less than {VOICE_DB:.0f} dBFS")


@pytest.mark.parametrize("size", [1, 100, 479, 480, 5 * 480, 99_999])
def test_recordings_of_any_length_are_measured(size: int) -> None:
    pcm = np.resize([0.5, -0.5], size).astype(np.float32)
    if size == 1:
        with pytest.raises(InvalidRequest, match="silence"):  # one sample is a constant
            check_voice(pcm, RATE, "audio")
    else:
        check_voice(pcm, RATE, "audio")
    with pytest.raises(InvalidRequest, match="silence: -120 dBFS"):
        check_voice(0 * pcm, RATE, "audio")


def test_short_word_in_a_long_silence_is_a_voice() -> None:
    pcm = np.zeros(30 * RATE, np.float32)
    pcm[RATE : RATE + RATE // 4] = VOICE[RATE : RATE + RATE // 4]
    check_voice(pcm, RATE, "audio")
