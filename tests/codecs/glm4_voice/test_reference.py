"""Each part of the decoder against the authors' code with the same random weights (`authors.py`)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lab.releases.random_glm4_voice import write_glm4_voice
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.codecs.glm4_voice import PARTS, Glm4VoiceCodec, read_config
from stretto.testing.codec_streams import stream
from tests.codecs.glm4_voice.reference import EVERY, LENGTHS, PART, PROMPT, REFERENCE, SIZES, inputs, mel, tokens
from tests.codecs.stored_results import StoredResults, thinned

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

HOP, OVERLAP = 256, 34


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glm4_voice(tmp_path_factory.mktemp("glm4_voice"))


@pytest.fixture(scope="module")
def made(checkpoint: Path) -> StoredResults:
    return StoredResults(REFERENCE, EVERY, inputs(checkpoint))


def make(checkpoint: Path, sizes: tuple[int, ...]) -> Glm4VoiceCodec:
    """Return the codec in float64; weight norms are multiplied out in float64."""
    codec = Glm4VoiceCodec(read_config(checkpoint), sizes).double()
    for part, module in zip(PARTS, (codec.flow, codec.hift), strict=True):
        published = {name: each.double() for name, each in torch.load(checkpoint / f"{part}.pt").items()}
        module.load_state_dict(multiply_weight_norm_out(published))
    return codec.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> Glm4VoiceCodec:
    return make(checkpoint, SIZES[1])


def test_conformer_and_regulator_match_the_authors(made: StoredResults, codec: Glm4VoiceCodec) -> None:
    ids = tokens()[:, :PART]
    assert made.error("encoded", codec.flow.encoder(codec.flow.input_embedding(ids))) < 1e-6
    assert made.error("goal", codec.flow.goal(ids, codec.mels(PART))) < 1e-6


def test_flow_matches_the_authors_with_and_without_a_prompt(made: StoredResults, codec: Glm4VoiceCodec) -> None:
    ids, noise = tokens()[:, :PART], codec.noise[:, : codec.mels(PART)].double()
    assert made.error("mel", codec.flow(ids, noise, torch.zeros(1, 80, 0))) < 1e-6
    assert made.error("prompted", codec.flow(ids, noise, mel()[..., :PROMPT])[..., PROMPT:]) < 1e-6


def test_vocoder_matches_the_authors(made: StoredResults, codec: Glm4VoiceCodec) -> None:
    drawn = mel()
    source = codec.hift.source(drawn, codec.phases, codec.source_noise[:, : drawn.shape[2] * HOP].double())
    assert made.error("source", source) < 1e-6
    assert made.error("pcm", codec.hift(drawn, source)) < 1e-6


@pytest.mark.parametrize(("sizes", "length"), [(sizes, length) for sizes in SIZES for length in LENGTHS[sizes[0]]])
def test_block_decode_matches_the_published_loop(
    made: StoredResults, checkpoint: Path, sizes: tuple[int, ...], length: int
) -> None:
    codec = make(checkpoint, sizes)
    pcm = stream(codec, tokens()[:, None, :length], [length])
    assert pcm.shape == (1, length * codec.spec.samples_per_frame)
    spoken = codec.mels(length) * HOP
    assert pcm[:, spoken:].abs().sum() == 0
    assert made.error(f"loop_{sizes[0]}_{length}", pcm[:, :spoken]) < 1e-6


def test_first_two_blocks_match_the_published_loop(made: StoredResults, checkpoint: Path) -> None:
    sizes = SIZES[0]
    codec = make(checkpoint, sizes)
    published, ours = made.stored("demo_8_43"), thinned(stream(codec, tokens()[:, None, :43], [43])[0], EVERY)
    assert published[0] == (codec.mels(43) - 2) * HOP  # two blocks after these
    alike = (codec.mels(sum(sizes[:2])) - OVERLAP - 1) * HOP // EVERY
    difference = np.abs(ours[1 : len(published)] - published[1:])
    assert difference[:alike].max() < 1e-6
    assert difference[alike:].max() > 1e-2
