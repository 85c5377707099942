"""Each part of the decoder against the authors' code with the same random weights (`authors.py`)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.checkpoints.random_glm4_voice import write_glm4_voice
from benchmarks.decoder import stream
from stretto.codecs.glm4_voice import Glm4VoiceCodec, load_part, read_config
from tests.codecs.glm4_voice.reference import EVERY, LENGTHS, PART, PROMPT, REFERENCE, SIZES, thinned, tokens

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

HOP, OVERLAP = 256, 34
MADE = np.load(REFERENCE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glm4_voice(tmp_path_factory.mktemp("glm4_voice"))


def make(checkpoint: Path, sizes: tuple[int, ...]) -> Glm4VoiceCodec:
    codec = Glm4VoiceCodec(read_config(checkpoint), sizes)
    load_part(codec.flow, checkpoint, "flow")
    load_part(codec.hift, checkpoint, "hift")
    return codec.eval().requires_grad_(False).double()


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> Glm4VoiceCodec:
    return make(checkpoint, SIZES[1])


def error(name: str, ours: Tensor) -> float:
    """Return the largest difference relative to the level."""
    wanted, found = MADE[name], thinned(ours.numpy())
    assert wanted[0] == found[0], f"{name}: {found[0]} numbers instead of {wanted[0]}"
    return float(np.abs(found[1:] - wanted[1:]).max() / np.sqrt(np.square(wanted[1:]).mean()))


def test_conformer_and_regulator_match_the_authors(codec: Glm4VoiceCodec) -> None:
    ids = tokens()[:, :PART]
    assert error("encoded", codec.flow.encoder(codec.flow.input_embedding(ids))) < 1e-6
    assert error("goal", codec.flow.goal(ids, codec.mels(PART))) < 1e-6


def test_flow_matches_the_authors_with_and_without_a_prompt(codec: Glm4VoiceCodec) -> None:
    ids, noise = tokens()[:, :PART], codec.noise[:, : codec.mels(PART)].double()
    mel = codec.flow(ids, noise, torch.zeros(1, 80, 0))
    assert error("mel", mel) < 1e-6
    assert error("prompted", codec.flow(ids, noise, mel[..., :PROMPT])[..., PROMPT:]) < 1e-6


def test_vocoder_matches_the_authors(codec: Glm4VoiceCodec) -> None:
    ids, noise = tokens()[:, :PART], codec.noise[:, : codec.mels(PART)].double()
    mel = codec.flow(ids, noise, torch.zeros(1, 80, 0))
    source = codec.hift.source(mel, codec.phases, codec.source_noise[:, : mel.shape[2] * HOP].double())
    assert error("source", source) < 1e-4  # the weights' norms are multiplied out in float32, and phases add up
    assert error("pcm", codec.hift(mel, source)) < 1e-4


@pytest.mark.parametrize(("sizes", "length"), [(sizes, length) for sizes in SIZES for length in LENGTHS[sizes[0]]])
def test_block_decode_matches_the_published_loop(checkpoint: Path, sizes: tuple[int, ...], length: int) -> None:
    codec = make(checkpoint, sizes)
    pcm = stream(codec, tokens()[:, None, :length], [length])
    assert pcm.shape == (1, length * codec.spec.samples_per_frame)
    spoken = codec.mels(length) * HOP
    assert pcm[:, spoken:].abs().sum() == 0
    assert error(f"loop_{sizes[0]}_{length}", pcm[:, :spoken]) < 1e-3  # phases add up over a whole block


def test_first_two_blocks_match_the_published_loop(checkpoint: Path) -> None:
    sizes = SIZES[0]
    codec = make(checkpoint, sizes)
    published, ours = MADE["demo_8_43"], thinned(stream(codec, tokens()[:, None, :43], [43])[0].numpy())
    assert published[0] == (codec.mels(43) - 2) * HOP  # two blocks after these
    alike = (codec.mels(sum(sizes[:2])) - OVERLAP - 1) * HOP // EVERY
    difference = np.abs(ours[1 : len(published)] - published[1:])
    assert difference[:alike].max() < 1e-5
    assert difference[alike:].max() > 1e-2
