"""No family clones the voice of a silent recording, whichever turn contains it."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from plugins.kyutai.tests.kyutai_tts_release import make_checkpoint
from plugins.vibevoice.tests import vibevoice_release
from plugins.voxcpm2.tests import voxcpm2_release
from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import VOICE_DB, check_voice
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests import published_csm, published_qwen3_tts
from tests.encoders.recordings import speech
from tests.fakes import FrameCounter
from tests.published_checkpoints import convert, write_release
from tests.tiers import by_night

RATE = 24_000
VOICE = speech(2.0)[: 2 * RATE].astype(np.float32)
VOICE /= 2 * np.abs(VOICE).max()
NOISE = np.random.default_rng(0)


def opuslm(folder: Path) -> Path:
    return convert("opuslm", write_release("opuslm", folder / "release"), folder / "out")


def csm(folder: Path) -> Path:
    return published_csm.convert(folder, published_csm.make_model())[0]


def qwen3_tts(folder: Path) -> Path:
    return published_qwen3_tts.Checkpoint(folder, "base").folder


# Checkpoint, name of the turn with the recording, and the turns of a request.
SYSTEM: list[dict[str, Any]] = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "hello"}]
EARLIER: list[dict[str, Any]] = [
    {"role": "user", "text": "hello"},
    {"role": "assistant", "audio": "pcm_in"},
    {"role": "user", "text": "hello"},
]
SPEAKER: list[dict[str, Any]] = [{"role": "user", "audio": "pcm_in"}, {"role": "user", "text": "hello"}]
CONTEXT: list[dict[str, Any]] = [
    {"role": "user", "text": "hello", "audio": "pcm_in"},
    {"role": "assistant", "text": "hello"},
]
RELEASES = [
    pytest.param(qwen3_tts, SYSTEM, id="qwen3_tts"),
    pytest.param(vibevoice_release.convert_release, SPEAKER, id="vibevoice, a turn of the user"),
    pytest.param(csm, CONTEXT, id="csm, an earlier turn"),
    *by_night(
        (opuslm, SYSTEM),
        (voxcpm2_release.convert_release, SYSTEM),
        (voxcpm2_release.convert_release, EARLIER),
        (make_checkpoint, SYSTEM),
        ids=["opuslm", "voxcpm2", "voxcpm2, an earlier turn", "kyutai_tts"],
    ),
]
# Recordings without a voice, and their levels in dBFS as reported.
SILENT: dict[str, tuple[np.ndarray, int]] = {
    "zeros": (np.zeros(2 * RATE), -120),
    "constant": (np.full(2 * RATE, 0.3), -120),
    "noise of 16 bits": (NOISE.triangular(-1, 0, 1, 2 * RATE) / 32_768, -94),
    "voice at -90 dB": (VOICE * 10**-4.5, -101),
    "click": (np.eye(1, 2 * RATE, RATE)[0], -120),
}


@pytest.mark.parametrize(("make", "turns"), RELEASES)
def test_silent_recording_of_a_voice_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], turns: list[dict[str, Any]]
) -> None:
    codec: Codec | None = FrameCounter(1920, 4, 32, RATE) if make is qwen3_tts else None
    preprocessor = Preprocessor(make(tmp_path), codec)
    number = next(number for number, turn in enumerate(turns) if "audio" in turn)
    task = "speak" if make is csm else "tts"
    for pcm, _ in SILENT.values():
        raw = RawRequest(
            messages=json.dumps(turns),
            pcm_in=pcm.astype(np.float32),
            sample_rate=RATE,
            task=task,
            options='{"seed": 1}',
        )
        expected = rf"^messages\[{number}\]\.audio: expected a recording of a voice, got silence: -\d+ dBFS in its "
        with pytest.raises(InvalidRequest, match=expected):
            preprocessor.prepare(raw)


def file(channels: np.ndarray) -> bytes:
    """Return a WAV file with channels [C, n]."""
    buffer = BytesIO()
    soundfile.write(buffer, channels.T, RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_quiet_or_inverted_recordings_are_voices(tmp_path: Path) -> None:
    preprocessor = Preprocessor(qwen3_tts(tmp_path), FrameCounter(1920, 4, 32, RATE))
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
