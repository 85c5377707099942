"""VITA-Audio-Plus's audio encoder against the authors' code with the same random weights (`authors_hearing.py`)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.releases import random_vita as random
from stretto.errors import CheckpointError
from stretto.families.vita_audio import convert
from stretto.families.vita_audio.model import audio_adaptor, audio_tower, embed_audio, positions
from stretto.families.vita_audio.prompt import HOP, WINDOW, stacked_log_mel
from stretto.family.audio_format import AudioFormat
from tests.encoders.recordings import speech
from tests.families.vita_audio.hearing import AUTHORS, HIDDEN, LENGTHS, NUM_POSITIONS, thinned
from tests.half_precision import assert_near_in_half_precision

THEIRS = np.load(AUTHORS)
TENSORS = {name: torch.from_numpy(value) for name, value in random.encoder_tensors(HIDDEN).items()}


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    return convert.encoder_numbers(random.write_numbers(tmp_path_factory.mktemp("sense_voice")))


def loaded(module: torch.nn.Module, prefix: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    ours = {name.removeprefix(prefix): value for name, value in TENSORS.items() if name.startswith(prefix)}
    module.load_state_dict({name: value for name, value in ours.items() if not name.startswith("ctc.")})
    return module.to(dtype)


@pytest.mark.parametrize("seconds", LENGTHS)
def test_vita_audio_features_match_the_published_code(audio: Mapping[str, object], seconds: float) -> None:
    ours = stacked_log_mel(speech(seconds), audio, dither=0.0)
    np.testing.assert_allclose(thinned(ours), THEIRS[f"features {seconds}"], atol=2e-4)


@pytest.mark.parametrize("seconds", LENGTHS)
@torch.no_grad()
def test_rows_match_the_authors(audio: Mapping[str, object], seconds: float) -> None:
    tower = loaded(audio_tower(audio), random.TOWER)
    adaptor = loaded(audio_adaptor(audio, HIDDEN), random.ADAPTOR)
    features = stacked_log_mel(speech(seconds), audio, dither=0.0)
    rows = embed_audio(tower, adaptor, torch.from_numpy(features))
    audio_format = AudioFormat.from_config({"audio_config": audio})
    assert audio_format is not None
    assert len(rows) == audio_format.num_rows(len(features)) == 4 + len(features)
    np.testing.assert_allclose(thinned(rows.numpy()), THEIRS[f"rows {seconds}"], atol=1e-4, rtol=1e-4)


def test_bfloat16_positions_match_the_authors() -> None:
    ours = positions(NUM_POSITIONS, random.WIDTH, torch.zeros(1, dtype=torch.bfloat16))
    np.testing.assert_array_equal(thinned(ours.float().numpy()), THEIRS["positions"])


@torch.no_grad()
def test_bfloat16_audio_tower_accepts_float32_features(audio: Mapping[str, object]) -> None:
    """The engine passes float32 features; rows have the dtype of the weights."""
    towers = [loaded(audio_tower(audio), random.TOWER, dtype) for dtype in (torch.float32, torch.bfloat16)]
    adaptors = [
        loaded(audio_adaptor(audio, HIDDEN), random.ADAPTOR, dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    features = torch.from_numpy(stacked_log_mel(speech(1.03), audio))
    wide, narrow = (embed_audio(tower, adaptor, features) for tower, adaptor in zip(towers, adaptors, strict=True))
    assert narrow.dtype is torch.bfloat16
    assert_near_in_half_precision(narrow, wide, towers[0], adaptors[0])


def test_dither_of_silence_is_deterministic(audio: Mapping[str, object]) -> None:
    silence = np.zeros(16_000, np.float32)
    first, again = (stacked_log_mel(silence, audio) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    without = stacked_log_mel(silence, audio, dither=0.0)
    assert (first - without).min() > 1.0  # a floor of one step of 16 bits, not the logarithm of nothing


@pytest.mark.parametrize("num_samples", [WINDOW, WINDOW + HOP - 1, WINDOW + HOP, WINDOW + 6 * HOP, 9_999])
def test_features_stack_six_mel_frames(audio: Mapping[str, object], num_samples: int) -> None:
    mel = 1 + (num_samples - WINDOW) // HOP
    assert stacked_log_mel(speech(1.0)[:num_samples], audio).shape == (-(-mel // 6), 560)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_non_finite_encoder_numbers_are_refused(tmp_path: Path, number: str) -> None:
    path = random.write_numbers(tmp_path) / "am.mvn"
    head, _, tail = path.read_text().partition("<AddShift>")
    before, _, numbers = tail.partition("[ ")
    path.write_text(f"{head}<AddShift>{before}[ {number} {numbers.split(maxsplit=1)[1]}")
    with pytest.raises(CheckpointError, match="<AddShift>: expected finite numbers"):
        convert.encoder_numbers(tmp_path)


@pytest.mark.parametrize(
    ("name", "said", "instead", "message"),
    [
        ("config.yaml", "lfr_n: 6", "lfr_n: 1", "frontend_conf.lfr_n: expected 6, got 1"),
        ("config.yaml", "model: Sense", "model: Sensible", "model: expected 'SenseVoiceSmall', got 'SensibleVoiceS"),
        ("config.yaml", "num_blocks: 3", "num_blocks: many", "num_blocks: expected an integer in .*, got 'many'"),
        ("config.yaml", "encoder_conf:\n", "encoder_conf: 1\nrest:\n", "encoder_conf: expected an object, got 1"),
        ("am.mvn", "<Rescale>", "<Scale>", "expected <Rescale> and 560 numbers"),
        ("am.mvn", "<AddShift> 560 560\n<LearnRateCoef> 0 [", "<AddShift> [ x", "expected <AddShift> and 560 numbers"),
        ("am.mvn", "<AddShift> 560 560\n<LearnRateCoef> 0 [", "<AddShift> [ 1", "expected 560 numbers, got 561"),
    ],
)
def test_incompatible_encoder_files_are_refused(
    tmp_path: Path, name: str, said: str, instead: str, message: str
) -> None:
    path = random.write_numbers(tmp_path) / name
    changed = path.read_text().replace(said, instead)
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(CheckpointError, match=message):
        convert.encoder_numbers(tmp_path)
