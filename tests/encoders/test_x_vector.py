"""x-vectors of recordings for prompts, and checkpoints that have none."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.checkpoints.random_qwen3_codec import make_qwen3_codec, write_speaker_encoder
from stretto.codecs.base import Codec
from stretto.codecs.qwen3_12hz.codec import Qwen3Codec
from stretto.encoders.x_vector import FOLDER, SpeakerConfig, SpeakerEncoder, load_voice_encoder
from stretto.errors import CheckpointError, InvalidRequest
from tests.codecs.conftest import make_codec
from tests.codecs.qwen3_12hz.reference import SPEAKER, speech

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def codec() -> Qwen3Codec:
    return make_qwen3_codec("narrow")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_speaker_encoder(tmp_path / FOLDER, SPEAKER)
    return tmp_path


def test_a_voice_is_its_codes_and_its_x_vector(checkpoint: Path, codec: Codec) -> None:
    voices = load_voice_encoder(checkpoint, codec)
    assert voices is not None
    assert voices.hidden == SPEAKER["enc_dim"]
    pcm = speech(0.5)
    voice = voices.encode(pcm)
    assert np.array_equal(voice.codes, codec.encode(pcm))
    assert (voice.x_vector.shape, voice.x_vector.dtype) == ((24,), np.float32)
    assert np.array_equal(voice.x_vector, voices.speaker.encode(pcm))


def test_a_checkpoint_that_brings_no_speaker_encoder_has_no_voices(tmp_path: Path, codec: Codec) -> None:
    assert load_voice_encoder(tmp_path, codec) is None


def test_a_voice_that_is_too_short_is_refused(checkpoint: Path, codec: Codec) -> None:
    voices = load_voice_encoder(checkpoint, codec)
    assert voices is not None
    fewest = voices.speaker.config.fewest_samples
    assert voices.encode(speech(1)[:fewest]).codes.shape == (16, 1)
    with pytest.raises(InvalidRequest, match=r"audio.*at least 0\.053 s of a voice"):
        voices.encode(speech(1)[: fewest - 1])


def test_another_codecs_rate_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a codec of 24000 Hz, got 16000"):
        load_voice_encoder(checkpoint, make_codec())


def test_the_release_says_no_more_than_a_width_and_a_rate() -> None:
    config = SpeakerConfig.from_record({"enc_dim": 1024, "sample_rate": 24_000})
    shapes = {name: tuple(tensor.shape) for name, tensor in SpeakerEncoder(config).network.state_dict().items()}
    assert len(shapes) == 76
    assert shapes["blocks.0.conv.weight"] == (512, 128, 5)
    assert shapes["blocks.3.res2net_block.blocks.6.conv.weight"] == (64, 64, 3)
    assert shapes["mfa.conv.weight"] == (1536, 1536, 1)
    assert shapes["asp.tdnn.conv.weight"] == (128, 4608, 1)
    assert shapes["fc.weight"] == (1024, 3072, 1)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"sample_rate": 24_000}, "enc_dim"),
        ({"enc_dim": 8, "sample_rate": 16_000}, "sample_rate must be 24000, got 16000"),
        ({"enc_dim": 8, "enc_dilations": [1, 2]}, "must have the same length"),
        ({"enc_dim": 8, "depth": 3}, "depth"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(checkpoint: Path, codec: Codec, record: dict, said: str) -> None:
    (checkpoint / FOLDER / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=said):
        load_voice_encoder(checkpoint, codec)


def test_tensors_that_do_not_fit_are_named(checkpoint: Path, codec: Codec) -> None:
    path = checkpoint / FOLDER / "model.safetensors"
    tensors = load_file(path)
    del tensors["fc.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"missing \['fc.bias'\]"):
        load_voice_encoder(checkpoint, codec)
