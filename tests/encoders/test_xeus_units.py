"""Semantic audio codes from the tokenizer that a checkpoint may contain."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stretto.encoders.xeus import CONFIG, FOLDER, WEIGHTS, load_ssl_tokenizer, read_centres
from stretto.errors import CheckpointError
from stretto.families.opuslm.convert import ConvertedSslTokenizer
from tests import published_xeus
from tests.reference import xeus as reference

NUM_CODES = 20


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint folder with the converted small XEUS release."""
    release = published_xeus.write_xeus(tmp_path / "xeus")
    folder = tmp_path / "checkpoint" / FOLDER
    folder.mkdir(parents=True)
    ConvertedSslTokenizer.from_folder(release, NUM_CODES).write(folder, lambda num_bytes: None)
    return folder.parent


def speech(num_samples: int, seed: int = 3) -> np.ndarray:
    """Return samples whose loudness and pitch change."""
    draw, time = np.random.default_rng(seed), np.arange(num_samples) / 16_000
    tones = [np.sin(2 * np.pi * (80 + 900 * draw.random()) * time * (1 + draw.random() * time)) for _ in range(4)]
    pcm = 0.1 * np.sum(tones, axis=0) * (0.2 + np.sin(9 * time) ** 2) + 0.02 * draw.standard_normal(num_samples)
    return pcm.astype(np.float32)


def test_missing_ssl_tokenizer_loads_as_none(tmp_path: Path) -> None:
    assert load_ssl_tokenizer(tmp_path, NUM_CODES) is None


@pytest.mark.parametrize("num_samples", [400, 401, 719, 721, 5437, 16_000])
def test_ssl_codes_are_nearest_centroids_of_reference_features(checkpoint: Path, num_samples: int) -> None:
    tokenizer = load_ssl_tokenizer(checkpoint, NUM_CODES)
    assert tokenizer is not None
    pcm = speech(num_samples)
    codes = tokenizer.encode(pcm)
    features = reference.features(pcm, published_xeus.published_tensors(), published_xeus.CONFIG)
    distances = reference.distances(features, read_centres(published_xeus.KMEANS).astype(np.float64))
    assert codes.dtype == np.int64
    assert np.array_equal(codes, distances.argmin(1))
    assert len(codes) == (num_samples - 400) // 320 + 1
    assert len(set(codes)) > 5 or num_samples < 16_000, "the audio has more than one sound"
    leads = np.diff(np.sort(distances, axis=1)[:, :2])
    assert leads.min() > 1e-3, "no code is a matter of rounding"


@pytest.mark.parametrize(("num_samples", "num_codes"), [(399, 0), (400, 1), (719, 1), (720, 2)])
def test_audio_shorter_than_a_window_has_no_codes(checkpoint: Path, num_samples: int, num_codes: int) -> None:
    tokenizer = load_ssl_tokenizer(checkpoint, NUM_CODES)
    assert tokenizer is not None
    assert tokenizer.encode(speech(num_samples)).shape == (num_codes,)


def test_codes_do_not_depend_on_loudness(checkpoint: Path) -> None:
    tokenizer = load_ssl_tokenizer(checkpoint, NUM_CODES)
    assert tokenizer is not None
    assert np.array_equal(tokenizer.encode(speech(8000)), tokenizer.encode(0.25 * speech(8000)))


def without_a_norm(tensors: dict[str, Tensor]) -> None:
    del tensors["xeus.encoder.after_norm.weight"]


def with_another(tensors: dict[str, Tensor]) -> None:
    tensors["xeus.masker"] = torch.zeros(1)


def misshapen(tensors: dict[str, Tensor]) -> None:
    tensors["centres"] = tensors["centres"][:, 1:].contiguous()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_norm, r"missing: xeus.encoder.after_norm.weight"),
        (with_another, r"unknown: xeus.masker"),
        (misshapen, "wrong shape: centres"),
    ],
)
def test_error_names_misfitting_tensors(
    checkpoint: Path, damage: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    path = checkpoint / FOLDER / WEIGHTS
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message):
        load_ssl_tokenizer(checkpoint, NUM_CODES)


def test_ssl_tokenizer_with_wrong_code_count_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="wrong shape: centres"):
        load_ssl_tokenizer(checkpoint, NUM_CODES + 1)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_incomplete_ssl_tokenizer_folder_is_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / FOLDER / name).unlink()
    with pytest.raises(CheckpointError, match=r"ssl_tokenizer: expected config\.json and model\.safetensors of XEUS"):
        load_ssl_tokenizer(checkpoint, NUM_CODES)


def test_xeus_config_with_unknown_key_is_refused(checkpoint: Path) -> None:
    (checkpoint / FOLDER / CONFIG).write_text(json.dumps({"convolutions": [], "width": 3}))
    with pytest.raises(CheckpointError, match="unexpected keyword argument 'width'"):
        load_ssl_tokenizer(checkpoint, NUM_CODES)
