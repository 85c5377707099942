"""The codec and the networks for recordings against the authors' code with the same random weights (`authors.py`)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from plugins.indextts2.lab import codecs, random_acoustics
from plugins.indextts2.tests.codec.reference import EVERY, LENGTHS, REFERENCE, VOICES, codes, inputs, mel, recording
from stretto.codecs.base import load_codec
from stretto.convert.conversion import ConvertedNetwork
from stretto.encoders.voice_spectra import TOKEN_RATE_HZ, resample_by_sinc
from stretto_indextts2.codec import IndexTtsCodec
from stretto_indextts2.convert_voices import hearing_network
from stretto_indextts2.family import SAMPLE_RATE
from stretto_indextts2.voices import EncodedVoice, RecordingEncoder, load_recording_encoder
from tests.codecs.stored_results import StoredResults

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
# Weights with norms multiplied out are written in float32.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def reference() -> StoredResults:
    return StoredResults(REFERENCE, EVERY, inputs())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indextts2")
    checkpoint = codecs.write_codec(folder)
    network = hearing_network(folder / "release", random_acoustics.gpt_tensors(), random_acoustics.EMOTION_SIZES)
    ConvertedNetwork.from_network(network, {}).write(checkpoint, lambda num_bytes: None)
    return checkpoint


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> IndexTtsCodec:
    codec = load_codec("indextts2", checkpoint)
    assert isinstance(codec, IndexTtsCodec)
    assert codec.config == random_acoustics.NARROW
    return codec.double()


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> RecordingEncoder:
    return load_recording_encoder(checkpoint)


@pytest.mark.parametrize("length", LENGTHS)
def test_samples_of_a_mel_match_bigvgan(reference: StoredResults, codec: IndexTtsCodec, length: int) -> None:
    assert reference.error(f"pcm_{length}", codec.vocoder(mel(length), codec.on_step)) < CLOSE


@pytest.mark.parametrize("name", VOICES)
@torch.inference_mode()
def test_steps_of_the_decoder_match_the_authors(reference: StoredResults, codec: IndexTtsCodec, name: str) -> None:
    number = codec.add_voice(*VOICES[name])
    voice = codec.voices[number]
    for length in LENGTHS:
        spoken = codes(length)
        latents = codec.latents(voice.rows, voice.text, spoken, codec.on_step)
        assert reference.error(f"latents_{name}_{length}", latents) < CLOSE
        assert reference.error(f"mel_{name}_{length}", codec.mel(spoken, voice)) < CLOSE
        assert reference.error(f"spoken_{name}_{length}", codec.speak(spoken, voice)) < CLOSE
    codec.remove_voice(number)


@pytest.mark.parametrize("name", VOICES)
@torch.inference_mode()
def test_recordings_are_encoded_as_by_the_authors(
    reference: StoredResults, checkpoint: Path, encoder: RecordingEncoder, name: str
) -> None:
    """Codes are compared in float64, in which no other one is as near to a hidden state."""
    exact = load_recording_encoder(checkpoint).double()
    pcm = recording(name)
    states = exact.speech(resample_by_sinc(torch.from_numpy(pcm)[None], SAMPLE_RATE, TOKEN_RATE_HZ)[0])
    summary = exact.emo_perceiver_encoder(exact.emo_conditioning_encoder(states))[0]
    results = {
        "states": states,
        "rows": exact.perceiver_encoder(exact.conditioning_encoder(states)),
        "emotion": exact.emo_layer(exact.emovec_layer(summary)),
        "tokens": exact.semantic(states).double(),
    }
    assert max(reference.error(f"{part}_{name}", tensor) for part, tensor in results.items()) < CLOSE
    voice = EncodedVoice.from_array(encoder.encode(pcm))
    arrays = {"rows": voice.latents, "emotion": voice.emotion, "style": voice.style, "log_mel": voice.mel}
    errors = {part: reference.error(f"{part}_{name}", torch.from_numpy(array)) for part, array in arrays.items()}
    assert max(errors.values()) < 2e-3, errors
    assert np.mean(voice.tokens == exact.semantic(states).numpy()) > 0.9
