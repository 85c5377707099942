from pathlib import Path

import numpy as np
import pytest
import torch

from lab.releases.random_espnet import CODEBOOKS, SIZE, publish, published_tensors
from stretto.codecs.base import Window, load_codec
from stretto.codecs.espnet_dac import EspnetDac, load
from tests.codecs.espnet_reference import Reference
from tests.codecs.streaming import (
    check_chunks,
    check_codes,
    check_places,
    chunks_of,
    heard,
    largest,
    random_codes,
    stream,
)

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
TOTALS = (1, 3, 7, 8, 12, 31)  # below, at and above the context of 7 frames on each side


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return published_tensors()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]) -> Path:
    return publish(tmp_path_factory.mktemp("espnet_dac"), tensors)


@pytest.fixture
def codec(directory: Path, dtype: torch.dtype) -> EspnetDac:
    return load(directory).to(dtype)


@pytest.fixture
def reference(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> Reference:
    return Reference(tensors, dtype)


def test_codec_spec_is_read_from_the_checkpoint(directory: Path) -> None:
    spec = load_codec("espnet_dac", directory).spec
    assert (spec.sample_rate, spec.samples_per_frame, spec.frame_rate) == (16000, 320, 50.0)
    assert (spec.num_codebooks, spec.codebook_size) == (CODEBOOKS, SIZE)
    assert (spec.left_frames, spec.right_frames) == (7, 7)


@pytest.mark.parametrize("total", TOTALS)
def test_one_decode_equals_the_reference(
    codec: EspnetDac, reference: Reference, dtype: torch.dtype, total: int
) -> None:
    codes = random_codes(codec, 2, total)
    pcm = stream(codec, codes, [total])
    assert pcm.shape == (2, total * 320)
    assert pcm.dtype == dtype
    assert pcm.abs().mean() > 0.05
    assert largest(pcm - reference.decode(codes).clamp(-1, 1)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("total", TOTALS)
def test_streamed_decode_equals_one_shot_decode(
    codec: EspnetDac, reference: Reference, dtype: torch.dtype, total: int
) -> None:
    codes = random_codes(codec, 2, total, seed=total)
    whole = reference.decode(codes).clamp(-1, 1)
    assert whole.shape == (2, total * 320)
    check_chunks(codec, codes, whole, TOLERANCE[dtype])


def test_utterances_at_different_positions_decode_in_one_batch(codec: EspnetDac, dtype: torch.dtype) -> None:
    codes = random_codes(codec, 2, 40)
    check_places(codec, codes, stream(codec, codes, chunks_of(5, 40)), TOLERANCE[dtype], (10, 25))


@pytest.mark.parametrize("dtype", [torch.float64], indirect=True)
def test_espnet_dac_lookahead_matches_the_spec(codec: EspnetDac) -> None:
    frames = heard(lambda codes: stream(codec, codes, [60]), random_codes(codec, 1, 60), 20, SIZE)
    assert frames.nonzero()[0].item() == 20 - codec.spec.right_frames
    assert frames[20 - 6 :].all()


@pytest.mark.parametrize("dtype", [torch.float64], indirect=True)
def test_state_and_lookahead_affect_the_output(codec: EspnetDac) -> None:
    codes = random_codes(codec, 1, 40)
    whole = stream(codec, codes, [40])[:, 20 * 320 : 25 * 320]

    def decoded(right: int, state: torch.Tensor) -> torch.Tensor:
        return codec.decode(Window(codes[:, :, 13 : 25 + right], 7, right, torch.tensor([20]), state))[0]

    _, state = codec.decode(Window(codes[:, :, :27], 0, 7, torch.tensor([0]), codec.initial_state(1)))
    assert largest(decoded(7, state) - whole) <= 1e-12
    assert largest(decoded(6, state) - whole) > 1e-6
    assert largest(decoded(7, codec.initial_state(1)) - whole) > 1e-3


def test_state_size_and_chunk_seams_are_bounded_in_a_long_reply(
    codec: EspnetDac, reference: Reference, dtype: torch.dtype
) -> None:
    codes = random_codes(codec, 1, 200)
    window = Window(codes[:, :, :27], 0, 7, torch.tensor([0]), codec.initial_state(1))
    assert codec.decode(window)[1].shape == codec.initial_state(1).shape == (1, 2 * 2 * 32)
    streamed = stream(codec, codes, chunks_of(25, 200))
    assert largest(streamed - reference.decode(codes).clamp(-1, 1)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("samples", [1, 2, 159, 161, 319, 320, 321, 5000, 16_001])
def test_espnet_dac_encoding_matches_the_reference(codec: EspnetDac, reference: Reference, samples: int) -> None:
    pcm = torch.randn(samples, generator=torch.Generator().manual_seed(1)) / 4
    check_codes(codec, pcm.numpy(), reference.encode(pcm.to(reference.dtype)))


def test_empty_pcm_encodes_to_zero_frames(codec: EspnetDac) -> None:
    assert codec.encode(np.zeros(0, np.float32)).shape == (CODEBOOKS, 0)
