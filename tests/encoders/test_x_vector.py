"""x-vectors of recordings for prompts, and checkpoints without a speaker encoder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lab.releases.random_qwen3_codec import write_speaker_encoder
from stretto.encoders.x_vector import FOLDER, SpeakerConfig, SpeakerEncoder, load_speaker_encoder
from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.qwen3_tts.prompt import open_voices
from tests.codecs.conftest import make_codec
from tests.codecs.qwen3_12hz.reference import SPEAKER, speech

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_speaker_encoder(tmp_path / FOLDER, SPEAKER)
    return tmp_path


def test_x_vector_has_the_model_width(checkpoint: Path) -> None:
    speaker = load_speaker_encoder(checkpoint)
    assert speaker is not None
    x_vector = speaker.encode(speech(0.5))
    assert (x_vector.shape, x_vector.dtype) == ((SPEAKER["enc_dim"],), np.float32)


def test_a_checkpoint_may_lack_a_speaker_encoder(tmp_path: Path) -> None:
    assert load_speaker_encoder(tmp_path) is None


def test_voice_shorter_than_the_encoder_minimum_is_refused(checkpoint: Path) -> None:
    speaker = load_speaker_encoder(checkpoint)
    assert speaker is not None
    fewest = speaker.config.min_samples
    assert speaker.encode(speech(1)[:fewest]).shape == (SPEAKER["enc_dim"],)
    with pytest.raises(InvalidRequest, match=r"audio.*at least 0\.053 s of a voice"):
        speaker.encode(speech(1)[: fewest - 1])


def test_codec_with_wrong_sample_rate_is_refused(checkpoint: Path) -> None:
    codec = make_codec()
    codec.spec = replace(codec.spec, sample_rate=16_000)
    with pytest.raises(CheckpointError, match="expected a codec of 24000 Hz, got 16000"):
        open_voices(checkpoint, codec, "cpu", SPEAKER["enc_dim"])


def test_speaker_encoder_shapes_follow_from_width_and_rate() -> None:
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
        ({"enc_dim": 8, "enc_dilations": [1, 2]}, "expected equal lengths >= 3"),
        ({"enc_dim": 8, "depth": 3}, "depth"),
    ],
    ids=str,
)
def test_invalid_config_numbers_are_refused(checkpoint: Path, record: dict, said: str) -> None:
    (checkpoint / FOLDER / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=said):
        load_speaker_encoder(checkpoint)


def test_error_names_mismatched_tensors(checkpoint: Path) -> None:
    path = checkpoint / FOLDER / "model.safetensors"
    tensors = load_file(path)
    del tensors["fc.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"missing: fc.bias"):
        load_speaker_encoder(checkpoint)
