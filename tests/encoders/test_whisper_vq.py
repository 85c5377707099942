"""Audio tokens against the authors' code with the same random weights (`whisper_vq_authors.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lab.releases.random_glm4_voice import NUM_CODES, write_glm4_tokenizer
from stretto.encoders.whisper_vq import FOLDER, SpeechTokenizer, load_tokenizer
from stretto.errors import CheckpointError
from tests.encoders.recordings import HEARD, recordings, speech

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SpeechTokenizer:
    return load(tmp_path_factory.mktemp("glm4_tokenizer"))


def load(checkpoint: Path, prefix: str = "", **values: object) -> SpeechTokenizer:
    write_glm4_tokenizer(checkpoint / FOLDER, prefix, **values)
    tokenizer = load_tokenizer(checkpoint, NUM_CODES)
    assert tokenizer is not None
    return tokenizer


def test_missing_ssl_tokenizer_loads_as_none(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path, NUM_CODES) is None


@pytest.mark.parametrize(("name", "pcm"), recordings().items())
def test_audio_tokens_match_the_authors(tokenizer: SpeechTokenizer, name: str, pcm: np.ndarray) -> None:
    """Recordings have less than a token, several blocks, and more than the 30 s that are encoded in one pass."""
    tokens = tokenizer.encode(pcm)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == json.loads(HEARD.read_text())[name]
    assert len(tokens) == -(-len(pcm) // 1280)


def test_authors_fixture_tokens_distinguish_the_recordings() -> None:
    heard = json.loads(HEARD.read_text())
    assert len(set(heard["4.321"])) > 10
    assert heard["2.56"] != heard["4.321"][:32]  # a block is normalised by the loudest value in all of it


def test_empty_audio_yields_no_tokens(tokenizer: SpeechTokenizer) -> None:
    assert tokenizer.encode(np.zeros(0, np.float32)).shape == (0,)


@pytest.mark.parametrize("prefix", ["encoder.", "model.encoder."])
def test_encoder_loads_from_a_whole_model(tmp_path: Path, prefix: str, tokenizer: SpeechTokenizer) -> None:
    pcm = speech(1.0)
    assert np.array_equal(load(tmp_path, prefix).encode(pcm), tokenizer.encode(pcm))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"encoder_causal_attention": True}, "encoder_causal_attention"),
        ({"pooling_type": "sum"}, "pooling_type"),
        ({"pooling_position": 3}, "pooling_position"),
        ({"quantize_vocab_size": 32}, "64 codes"),
        ({"num_mel_bins": 80}, "80 mel bands"),
        ({"encoder_ffn_dim": 40}, "wrong shape: layers.0.fc1.bias"),
        ({"quantize_position": 1, "pooling_position": 1, "d_model": 16}, "wrong shape"),
    ],
    ids=str,
)
def test_incompatible_whisper_vq_tokenizer_is_refused(tmp_path: Path, values: dict, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load(tmp_path, **values)


def test_error_names_missing_and_unknown_tensors(tmp_path: Path) -> None:
    path = write_glm4_tokenizer(tmp_path / FOLDER) / "model.safetensors"
    tensors = load_file(path)
    tensors["more"] = tensors.pop("codebook.weight")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"missing: codebook.weight; unknown: more"):
        load_tokenizer(tmp_path, NUM_CODES)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"safetensors has a tensor conv1"):
        load_tokenizer(tmp_path, NUM_CODES)


def test_deeply_nested_config_and_complex_weights_are_refused(tmp_path: Path) -> None:
    folder = write_glm4_tokenizer(tmp_path / FOLDER)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"conv1.bias": tensors["conv1.bias"] * 1j}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ssl_tokenizer: expected dense tensors .* conv1\.bias"):
        load_tokenizer(tmp_path, NUM_CODES)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"expected a JSON object, got RecursionError"):
        load_tokenizer(tmp_path, NUM_CODES)
