"""Voice recordings are encoded as by the authors' classes, and prompts have the rows that the converter writes."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plugins.chatterbox.lab.random_chatterbox import command, write_release
from plugins.chatterbox.tests.chatterbox_voices import NAMES, at_24_khz, authors, networks, voice_file
from stretto.convert.command import main
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.plugin import VOCABULARY, config_at
from stretto.preprocessing.audio import resample
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto.weights.loading import open_tensors
from stretto_chatterbox.family import ChatterboxVocabulary
from stretto_chatterbox.voices import CODES_S, MAX_CODES, RecordingEncoder, load_recording_encoder, trimmed

TURNS = json.dumps([{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "hello you"}])
NAME = "odd"  # recording of most tests


@pytest.fixture(scope="module")
def recording_encoder() -> RecordingEncoder:
    return networks()


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_voice_encodings_match_the_authors(name: str, recording_encoder: RecordingEncoder) -> None:
    """Tokens are equal, vectors within 1e-5 and mel frames within 1e-4."""
    pcm = at_24_khz(name)
    at16 = resample(pcm, 24_000, 16_000)
    tokens, mel, x_vector = recording_encoder.sound(pcm).arrays()
    expected = {key.removeprefix(f"{name}."): each for key, each in authors().items() if key.startswith(f"{name}.")}
    codes = recording_encoder.tokenizer.encode(torch.from_numpy(at16[: CODES_S * 16_000]), MAX_CODES)
    np.testing.assert_array_equal(codes, expected["t3_tokens"])
    np.testing.assert_array_equal(tokens, expected["prompt_token"])
    np.testing.assert_allclose(
        recording_encoder.ve.encode(torch.from_numpy(trimmed(at16))), expected["speaker_emb"], atol=1e-5
    )
    np.testing.assert_allclose(x_vector, expected["embedding"], atol=1e-5)
    assert expected["num_frames"] - 2 * len(tokens) in (0, 1)
    if "prompt_feat" in expected:
        np.testing.assert_allclose(mel, expected["prompt_feat"][: len(mel)], atol=1e-4)
    assert mel.shape == (2 * len(tokens), 80)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, recording_encoder: RecordingEncoder) -> Path:
    """Return a release with a voice `recorded`: the voice file of the recording NAME."""
    release, of_authors = write_release(tmp_path_factory.mktemp("chatterbox") / "release"), authors()
    sound = recording_encoder.sound(at_24_khz(NAME))
    voice = voice_file(of_authors[f"{NAME}.t3_tokens"], of_authors[f"{NAME}.speaker_emb"], sound)
    torch.save(voice, release / "voices" / "recorded.pt")
    return release


@pytest.fixture
def release(published: Path, tmp_path: Path) -> Path:
    """Return a copy of the release whose files a test may replace."""
    return Path(shutil.copytree(published, tmp_path / "release"))


@pytest.fixture(scope="module")
def checkpoint(published: Path) -> Path:
    assert main(command(published, published.parent / "checkpoint")) == 0
    return published.parent / "checkpoint"


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def asked(pcm: np.ndarray, rate: int = 24_000, **options: Any) -> RawRequest:
    return RawRequest(messages=TURNS, pcm_in=pcm, sample_rate=rate, options=json.dumps(options))


def test_recorded_voice_matches_the_converted_voice(preprocessor: Preprocessor, checkpoint: Path) -> None:
    known = ChatterboxVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    prompt = preprocessor.prepare(asked(at_24_khz(NAME), seed=1))
    prompt = Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows, prompt.features)
    named = preprocessor.prepare(RawRequest(text="hello you", options='{"voice": "recorded", "seed": 1}'))
    (audio,) = prompt.audios
    ids, table = known.voice("recorded"), open_tensors(checkpoint)["model.embed_tokens.weight"]
    assert (audio.first_row, audio.num_rows) == (0, known.num_voice_rows)
    np.testing.assert_allclose(audio.features, table[ids.start : ids.stop], atol=1e-5)
    np.testing.assert_array_equal(prompt.rows[known.num_voice_rows :], named.rows[known.num_voice_rows :])
    assert prompt.sound is not None
    tokens, mel, x_vector = prompt.sound.arrays()
    codec = load_file(checkpoint / "codec" / "model.safetensors")
    number = known.voices.index("recorded")
    np.testing.assert_array_equal(tokens, codec[f"voices.{number}.tokens"])
    np.testing.assert_allclose(mel.T, codec[f"voices.{number}.mel"], atol=1e-5)
    np.testing.assert_allclose(x_vector, codec[f"voices.{number}.speaker"], atol=1e-5)
    assert (prompt.voice, named.voice, named.sound) == (0, number, None)


def test_encoded_recordings_are_cached_in_memory_and_on_disk(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second request is answered from memory, and the third, after a restart, from a file."""
    folder, pcm = tmp_path / "encodings", at_24_khz(NAME)
    first = Preprocessor(checkpoint, encodings=folder)
    prompts = [first.prepare(asked(pcm, seed=1)) for _ in range(2)]
    assert len([*folder.iterdir()]) == 1
    monkeypatch.setattr(RecordingEncoder, "encode", Mock(side_effect=AssertionError("encoded again")))
    restarted = Preprocessor(checkpoint, encodings=folder)
    prompts.append(restarted.prepare(asked(pcm, seed=1)))
    assert len({prompt.to_bytes() for prompt in prompts}) == 1
    assert len({prompt.audios[0].features.tobytes() for prompt in prompts}) == 1


def test_exaggeration_changes_only_the_last_voice_row(preprocessor: Preprocessor, checkpoint: Path) -> None:
    known = ChatterboxVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    last = known.num_voice_rows - 1
    named = preprocessor.prepare(RawRequest(text="hello", options='{"voice": "anna", "exaggeration": 0.5}'))
    (audio,) = named.audios
    row = open_tensors(checkpoint)["model.embed_tokens.weight"][known.voice("anna")[-1]]
    assert (audio.first_row, audio.num_rows) == (last, 1)
    np.testing.assert_array_equal(audio.features[0], row)
    default, calm = (
        preprocessor.prepare(asked(at_24_khz(NAME), **options)).audios[0].features
        for options in ({}, {"exaggeration": 0})
    )
    np.testing.assert_array_equal(default[:last], calm[:last])
    np.testing.assert_array_equal(default[last], row)
    assert not calm[last].any()


def test_voice_with_zero_embedding_is_refused() -> None:
    silenced = networks()
    bias = torch.full_like(silenced.ve.proj.bias, -100.0)  # a new one: other tests share the tensor
    silenced.ve.proj.bias = torch.nn.Parameter(bias)
    with pytest.raises(InvalidRequest, match="got one that the voice encoder cannot represent"):
        silenced.encode(at_24_khz(NAME))


def test_recordings_are_refused_without_the_voice_networks(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (release / "ve.safetensors").unlink()
    assert main(command(release, tmp_path / "checkpoint")) == 1
    assert "ve.safetensors is missing; --no-hearing converts a release" in " ".join(capsys.readouterr().err.split())
    assert main([*command(release, tmp_path / "checkpoint"), "--no-hearing"]) == 0
    assert not (tmp_path / "checkpoint" / "hearing").exists()
    preprocessor = Preprocessor(tmp_path / "checkpoint")
    with pytest.raises(InvalidRequest, match=r"messages\[0\].role: expected 'user' for task 'tts', which takes no"):
        preprocessor.prepare(asked(at_24_khz(NAME)))
    with pytest.raises(InvalidRequest, match=r"options.exaggeration: expected no value \(this model does not"):
        preprocessor.prepare(RawRequest(text="a", options='{"exaggeration": 1}'))


def test_damaged_recording_encoder_error_names_the_tensors(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "hearing" / "model.safetensors"
    stored = load_file(checkpoint / "hearing" / path.name)
    path.parent.mkdir()
    for name, message in (
        ("speech_emb.weight", "expected the tensors of a voice's rows, got KeyError"),
        ("ve.proj.bias", r"missing: ve.proj.bias"),
    ):
        save_file({key: each for key, each in stored.items() if key != name}, path)
        with pytest.raises(CheckpointError, match=message):
            load_recording_encoder(tmp_path, 8, 64)
    save_file(stored, path)
    with pytest.raises(CheckpointError, match=r"expected rows \[8, 32\] of a voice, got \[8, 64\]"):
        load_recording_encoder(tmp_path, 8, 32)
