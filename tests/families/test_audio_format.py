"""Number of audio rows, and audio that a prompt may contain."""

import numpy as np
import pytest

from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.tiny.family import TINY
from stretto.family.audio_format import AudioFormat, check_audios
from stretto.family.log_mel import MelFormat
from stretto.records.prompt import InputAudio, Prompt

FORMAT = MelFormat(8)
SAMPLING = TINY.task("tts").sampling


def test_audio_row_counts_match_the_published_ones() -> None:
    assert (FORMAT.num_rows(100), FORMAT.num_rows(3000)) == (13, 390)
    wide = MelFormat(128, n_window=100)
    assert (wide.num_rows(200), wide.num_rows(3000)) == (25, 375)


def test_waveform_normalisation_is_on_by_default() -> None:
    record = {"num_mel_bins": 128, "n_window": 50}
    assert AudioFormat.from_config({"audio_config": record}) == MelFormat(128, 50, do_normalize=True)
    left = AudioFormat.from_config({"audio_config": record | {"do_normalize": False}})
    assert left == MelFormat(128, 50, do_normalize=False)
    assert AudioFormat.from_config({}) is None


@pytest.mark.parametrize("record", [{"model_type": "ears"}, {"model_type": ["x"]}, {"model_type": {}}, [], 3, "x"])
def test_unknown_audio_encoder_is_refused(record: object) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: audio_config: expected model_type .*x_vector, got "):
        AudioFormat.from_config({"audio_config": record})


def prompt(*audios: InputAudio) -> Prompt:
    return Prompt("tts", np.zeros((40, 9), np.int32), SAMPLING, audios=audios)


def audio(first_row: int = 2, num_rows: int = 13, shape: tuple[int, ...] = (100, 8)) -> InputAudio:
    return InputAudio(first_row, num_rows, np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("audios", "message"),
    [
        ((audio(shape=(100, 9)),), r"audios\[0\]: expected features \[F >= 1, 8\], got \[100, 9\]"),
        ((audio(shape=(0, 8)),), r"expected features"),
        ((audio(num_rows=12),), "expected 13 rows for 100 frames, got 12"),
        ((audio(first_row=30),), r"expected a first row in \[0, 27\], got 30"),
        ((audio(), audio(first_row=10)), r"audios\[1\]: expected a first row in \[15, 27\], got 10"),
    ],
)
def test_mismatched_input_audio_is_refused(audios: tuple[InputAudio, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_audios(prompt(*audios), FORMAT)


def test_audio_inputs_are_checked_and_need_an_encoder() -> None:
    check_audios(prompt(audio(), audio(first_row=15)), FORMAT)
    check_audios(prompt(), None)
    with pytest.raises(InvalidRequest, match="has no audio encoder"):
        check_audios(prompt(audio()), None)


def test_prompt_audios_round_trip_through_bytes() -> None:
    random = np.random.default_rng(0)
    made = prompt(
        InputAudio(2, 13, random.random((100, 8), np.float32)), InputAudio(20, 5, random.random((37, 8), np.float32))
    )
    read = Prompt.from_bytes("prompt", made.to_bytes(), made.rows, made.features)
    for one, other in zip(read.audios, made.audios, strict=True):
        assert (one.first_row, one.num_rows) == (other.first_row, other.num_rows)
        np.testing.assert_array_equal(one.features, other.features)
    assert Prompt.from_bytes("prompt", prompt().to_bytes(), made.rows).audios == ()
