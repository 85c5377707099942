"""Recordings as voices and emotions, and the conversion of the networks that encode them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.indextts2.lab import random_acoustics
from plugins.indextts2.lab.random_acoustics import EMOTION_SIZES, NARROW, gpt_tensors, latents_tensors
from stretto.convert.conversion import ConvertedNetwork
from stretto.errors import CheckpointError, InvalidRequest
from stretto_indextts2.codec import MAX_VOICE_FRAMES, MAX_VOICE_TOKENS
from stretto_indextts2.convert_codec import FLOW_FILE, SEMANTIC_FILES, VOCODER_FOLDER, codec_network
from stretto_indextts2.convert_voices import STATISTICS_FILE, STYLES_FILE, hearing_network
from stretto_indextts2.family import SAMPLE_RATE
from stretto_indextts2.voices import EncodedVoice, RecordingEncoder, load_recording_encoder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
VOCODER_CONFIG = f"{VOCODER_FOLDER}/config.json"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    random_acoustics.write_networks(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    network = hearing_network(release, gpt_tensors(), EMOTION_SIZES)
    ConvertedNetwork.from_network(network, {}).write(folder, lambda num_bytes: None)
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> RecordingEncoder:
    return load_recording_encoder(checkpoint)


def noise(seconds: float) -> np.ndarray:
    """Return a recording, float32 [n]."""
    return 0.1 * np.random.default_rng(1).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)


def test_short_recordings_are_refused(encoder: RecordingEncoder) -> None:
    with pytest.raises(InvalidRequest, match=r"audio: expected at least 0.5 s of a voice, got 0.490 s"):
        encoder.encode(noise(0.49))


def test_fifteen_seconds_of_a_recording_are_read(encoder: RecordingEncoder) -> None:
    """The audio decoder accepts 15 s of a recording, and later samples do not change the voice."""
    pcm = noise(15.4)
    encoded = encoder.encode(pcm)
    voice = EncodedVoice.from_array(encoded)
    assert len(voice.tokens) == MAX_VOICE_TOKENS - 1
    assert len(voice.mel) == MAX_VOICE_FRAMES - 1
    assert voice.latents.shape == (random_acoustics.ROWS, NARROW.gpt.width)
    assert voice.tokens.dtype == np.int32
    pcm[15 * SAMPLE_RATE :] = 0
    assert np.array_equal(encoder.encode(pcm), encoded)
    codec = random_acoustics.codec()
    text = np.array([2, 3], np.int32)
    assert codec.add_voice(voice.tokens, voice.mel, voice.style, text, voice.latents.ravel()) == 1


def test_arrays_of_a_voice_are_restored() -> None:
    random = np.random.default_rng(0)
    voice = EncodedVoice(
        latents=random.standard_normal((3, 4), np.float32),
        emotion=random.standard_normal(4, np.float32),
        style=random.standard_normal(192, np.float32),
        tokens=np.array([5, 0, 8191], np.int32),
        mel=random.standard_normal((7, 80), np.float32),
    )
    restored = EncodedVoice.from_array(voice.to_array())
    for name in EncodedVoice.__slots__:
        assert np.array_equal(getattr(restored, name), getattr(voice, name)), name


def test_emotions_are_mixed_from_the_most_similar_speakers(encoder: RecordingEncoder) -> None:
    random = np.random.default_rng(2)
    emotion = random.standard_normal(NARROW.gpt.width, np.float32)
    style = random.standard_normal(192, np.float32)
    weights = np.array([0.5, 0.2, 0, 0, 0, 0, 0.1, 0], np.float32)
    styles = encoder.emotion_styles.numpy()
    vectors = encoder.emotion_vectors.numpy()
    cosines = styles @ style / np.linalg.norm(styles, axis=1)
    expected = (1 - weights.sum()) * emotion
    first = 0
    for weight, number in zip(weights, EMOTION_SIZES, strict=True):
        expected = expected + weight * vectors[first + cosines[first : first + number].argmax()]
        first += number
    np.testing.assert_allclose(encoder.mixed_emotion(emotion, style, weights), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(encoder.mixed_emotion(emotion, style, 0 * weights), emotion)


@pytest.fixture
def copied(release: Path, tmp_path: Path) -> Path:
    """A copy of the release, whose files are links until they are replaced."""
    return Path(shutil.copytree(release, tmp_path / "copied", copy_function=os.link))


def convert(folder: Path, file: str) -> None:
    """Check all tensors of the networks that read a file of a release."""
    if file == FLOW_FILE:
        ConvertedNetwork.from_network(codec_network(folder, latents_tensors(), 2, 2), {})
    else:
        ConvertedNetwork.from_network(hearing_network(folder, gpt_tensors(), EMOTION_SIZES), {})


def without_flow(contents: Any) -> Any:
    del contents["net"]["cfm"]
    return contents


def with_other_shape(contents: Any) -> Any:
    contents["net"]["gpt_layer"]["1.bias"] = torch.zeros(3)
    return contents


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (FLOW_FILE, lambda contents: contents["net"], "net.cfm: expected tensors by name, got NoneType"),
        (FLOW_FILE, without_flow, "net.cfm: expected tensors by name, got NoneType"),
        (FLOW_FILE, with_other_shape, "wrong shape: gpt_layer.1.bias"),
        (FLOW_FILE, lambda contents: {"net": {"cfm": {"a": "b"}}}, "expected tensors by name, got other values in a"),
        (STYLES_FILE, lambda tensor: {"a": tensor}, "feat1.pt: expected a tensor, got dict"),
        (STYLES_FILE, lambda tensor: tensor[:-1], "wrong shape: emotion_styles"),
        (STATISTICS_FILE, lambda contents: {"mean": contents["mean"]}, "missing: speech.var"),
        (STATISTICS_FILE, lambda contents: Path("x"), "expected tensors"),
    ],
)
def test_other_pickled_files_are_refused(copied: Path, file: str, edit: Callable[[Any], Any], message: str) -> None:
    contents = edit(torch.load(copied / file, weights_only=True))
    (copied / file).unlink()
    torch.save(contents, copied / file)
    with pytest.raises(CheckpointError) as refusal:
        convert(copied, file)
    assert message in str(refusal.value)


def test_other_vocoders_are_refused(copied: Path) -> None:
    record = json.loads((copied / VOCODER_CONFIG).read_text())
    (copied / VOCODER_CONFIG).unlink()
    (copied / VOCODER_CONFIG).write_text(json.dumps(record | {"upsample_rates": [8, 8, 4]}))
    with pytest.raises(CheckpointError, match=r"config.json: upsample_rates: expected \[4, 4, 2, 2, 2, 2\], got"):
        codec_network(copied, latents_tensors(), 2, 2)


def test_semantic_codec_may_lie_where_its_repository_places_it(copied: Path) -> None:
    usual, other = (copied / name for name in SEMANTIC_FILES)
    other.parent.mkdir()
    usual.rename(other)
    assert codec_network(copied, latents_tensors(), 2, 2).plan
    other.unlink()
    with pytest.raises(CheckpointError, match=f"{usual} is missing"):
        codec_network(copied, latents_tensors(), 2, 2)


@pytest.mark.parametrize("emotions", [None, [1] * 7, [1] * 7 + [0], [1] * 7 + [True]])
def test_other_numbers_of_emotions_are_refused(release: Path, emotions: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config.yaml: emo_num: expected 8 integers in \[1, 4096\], got"):
        hearing_network(release, gpt_tensors(), emotions)
