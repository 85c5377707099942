"""Each part of the codec against the authors' code with the same random weights (`authors.py`)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.checkpoints.random_s3gen import MEANFLOW, NARROW, NUM_CODES, tensors
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.codecs.s3gen import NUM_SILENT, SILENCE, S3GenCodec, S3GenConfig, Voice
from stretto.families.chatterbox.release import HEARING, voice_tensors
from tests.codecs.s3gen.reference import LENGTHS, REFERENCE, VOICES, thinned, tokens

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

MADE = np.load(REFERENCE)


@pytest.fixture(scope="module")
def codec() -> S3GenCodec:
    return codec_of(NARROW)


def codec_of(shape: S3GenConfig) -> S3GenCodec:
    """Return the codec with random weights for a config, in float64."""
    spoken = {name: tensor for name, tensor in tensors(shape).items() if not name.startswith(HEARING)}
    for number, (name, gen) in enumerate(VOICES.items()):
        told = voice_tensors(name, {"gen": gen}, NUM_CODES)
        spoken |= {f"voices.{number}.{part}": tensor for part, tensor in told.items()}
    plain = multiply_weight_norm_out(spoken)
    config = S3GenConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in plain.items()})
    assert config.encoder == shape.encoder
    assert (config.estimator, config.vocoder, config.up_layers) == (shape.estimator, shape.vocoder, shape.up_layers)
    made = S3GenCodec(config)
    made.load_state_dict(plain)
    return made.eval().requires_grad_(False).double()


def error(name: str, ours: Tensor) -> float:
    """Return the largest difference relative to the level."""
    wanted, found = MADE[name], thinned(ours.numpy())
    assert wanted[0] == found[0], f"{name}: {found[0]} numbers instead of {wanted[0]}"
    return float(np.abs(found[1:] - wanted[1:]).max() / np.sqrt(np.square(wanted[1:]).mean()))


@pytest.mark.parametrize("number", range(len(VOICES)))
def test_s3gen_parts_match_the_published_code_in_each_voice(codec: S3GenCodec, number: int) -> None:
    name, voice = list(VOICES)[number], codec.voices[number]
    assert isinstance(voice, Voice)
    assert error(f"encoded_{name}", codec.flow.encoder(codec.flow.input_embedding(voice.tokens[None]))) < 1e-6
    for length in LENGTHS:
        case, codes = f"{name}_{length}", tokens(length)
        mel = codec.mel(codes, voice)
        assert error(f"mel_{case}", mel) < 1e-6
        # The weights' norms are multiplied out in float32, and phases add up.
        assert error(f"source_{case}", codec.source(codec.mel2wav.f0_predictor(mel))) < 1e-4
        pcm = codec.speak(codes, voice)
        assert error(f"pcm_{case}", pcm[None]) < 1e-3
        assert pcm.square().mean().sqrt() > (1e-3 if length > 1 else 0)
        assert torch.equal(pcm[:480], torch.zeros(480, dtype=torch.float64))


def test_two_step_mean_flow_matches_the_authors() -> None:
    """Three tokens of silence follow, as in the authors' `generate`."""
    codec = codec_of(MEANFLOW)
    assert codec.spec.num_samples(23, 0) == 26 * codec.spec.samples_per_frame
    for number, name in enumerate(VOICES):
        voice = codec.voices[number]
        assert isinstance(voice, Voice)
        for length in LENGTHS:
            codes = tokens(length)
            silent = torch.cat([codes, codes.new_full((NUM_SILENT,), SILENCE)])
            assert error(f"turbo_mel_{name}_{length}", codec.mel(silent, voice)) < 1e-6
            assert error(f"turbo_pcm_{name}_{length}", codec.speak(codes, voice)[None]) < 1e-3
