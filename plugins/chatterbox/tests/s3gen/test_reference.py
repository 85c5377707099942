"""Each part of the codec against the authors' code with the same random weights (`authors.py`)."""

import pytest
import torch

from plugins.chatterbox.lab.random_s3gen import MEANFLOW, NARROW, NUM_CODES, tensors
from plugins.chatterbox.tests.s3gen.reference import EVERY, LENGTHS, REFERENCE, VOICES, inputs, mel, tokens
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto_chatterbox.release import HEARING, voice_tensors
from stretto_chatterbox.s3gen import NUM_SILENT, SILENCE, FlowVoice, S3GenCodec, S3GenConfig
from tests.codecs.stored_results import StoredResults

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def made() -> StoredResults:
    return StoredResults(REFERENCE, EVERY, inputs())


@pytest.fixture(scope="module")
def codec() -> S3GenCodec:
    return codec_of(NARROW)


def codec_of(shape: S3GenConfig) -> S3GenCodec:
    """Return the codec with random weights for a config, in float64; weight norms are multiplied out in float64."""
    spoken = {name: tensor.double() for name, tensor in tensors(shape).items() if not name.startswith(HEARING)}
    for number, (name, gen) in enumerate(VOICES.items()):
        told = voice_tensors(name, {"gen": gen}, NUM_CODES)
        spoken |= {f"voices.{number}.{part}": tensor for part, tensor in told.items()}
    plain = multiply_weight_norm_out(spoken)
    config = S3GenConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in plain.items()})
    assert config.encoder == shape.encoder
    assert (config.estimator, config.vocoder, config.up_layers) == (shape.estimator, shape.vocoder, shape.up_layers)
    codec = S3GenCodec(config).double()
    codec.load_state_dict(plain)
    return codec.eval().requires_grad_(False)


@pytest.mark.parametrize("length", LENGTHS)
def test_source_and_samples_of_a_mel_match_the_authors(made: StoredResults, codec: S3GenCodec, length: int) -> None:
    drawn = mel(length)
    source = codec.source(codec.mel2wav.f0_predictor(drawn))
    assert made.error(f"source_{length}", source) < 1e-6
    assert made.error(f"pcm_{length}", codec.mel2wav(drawn, source)) < 1e-6


@pytest.mark.parametrize("number", range(len(VOICES)))
def test_s3gen_parts_match_the_published_code_in_each_voice(
    made: StoredResults, codec: S3GenCodec, number: int
) -> None:
    name, voice = list(VOICES)[number], codec.voices[number]
    assert isinstance(voice, FlowVoice)
    assert made.error(f"encoded_{name}", codec.flow.encoder(codec.flow.input_embedding(voice.tokens[None]))) < 1e-6
    for length in LENGTHS:
        codes = tokens(length)
        assert made.error(f"mel_{name}_{length}", codec.mel(codes, voice)) < 1e-6
        pcm = codec.speak(codes, voice)
        assert made.error(f"spoken_{name}_{length}", pcm) < 1e-6
        assert pcm.square().mean().sqrt() > (1e-3 if length > 1 else 0)
        assert torch.equal(pcm[:480], torch.zeros(480, dtype=torch.float64))


def test_two_step_mean_flow_matches_the_authors(made: StoredResults) -> None:
    """Three tokens of silence follow, as in the authors' `generate`."""
    codec = codec_of(MEANFLOW)
    assert codec.spec.num_samples(23, 0) == 26 * codec.spec.samples_per_frame
    for number, name in enumerate(VOICES):
        voice = codec.voices[number]
        assert isinstance(voice, FlowVoice)
        for length in LENGTHS:
            codes = tokens(length)
            silent = torch.cat([codes, codes.new_full((NUM_SILENT,), SILENCE)])
            assert made.error(f"turbo_mel_{name}_{length}", codec.mel(silent, voice)) < 1e-6
            assert made.error(f"turbo_pcm_{name}_{length}", codec.speak(codes, voice)) < 1e-6
