"""Every published windowed codec, loaded from a checkpoint, against a one-shot decode by transformers."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DacFeatureExtractor, PreTrainedModel

from lab.releases.random_codecs import codec_of, make_model, models
from stretto.codecs.base import Window, load_codec
from stretto.codecs.streaming import WindowedCodec
from tests.codecs.streaming import chunks_of, random_codes, stream
from tests.tiers import by_night

pytestmark = pytest.mark.slow

FRAMES = 37


@dataclass(frozen=True)
class Pair:
    """A codec, the model whose checkpoint it was loaded from, and the tolerance between them."""

    codec: WindowedCodec
    model: PreTrainedModel
    tolerance: float

    def one_shot(self, codes: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.model.decode(audio_codes=codes).audio_values.reshape(len(codes), -1).clamp(-1, 1)


FIRST, *OTHERS = [(name, torch.float32) for name in models()]
HALF_AS_WIDE = [pytest.param(FIRST), *(pytest.param(each, marks=pytest.mark.nightly) for each in OTHERS)]


@pytest.fixture(scope="module", params=[(name, torch.float64) for name in models()] + HALF_AS_WIDE)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, dtype = request.param
    model, directory = make_model(name), tmp_path_factory.mktemp(name)
    model.save_pretrained(directory)
    codec = load_codec(codec_of(name), directory)
    assert isinstance(codec, WindowedCodec)
    return Pair(codec.to(dtype), model.to(dtype), 1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("size", [1, 25, *by_night(2, 5)])
def test_chunked_batch_decode_matches_one_shot_decode(pair: Pair, size: int) -> None:
    codes = random_codes(pair.codec, 3, FRAMES)
    whole = pair.one_shot(codes)
    assert whole.shape == (3, FRAMES * pair.codec.spec.samples_per_frame - pair.codec.spec.tail_samples)
    assert whole.square().mean() > 1e-3
    streamed = stream(pair.codec, codes, chunks_of(size, FRAMES))
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() <= pair.tolerance


@pytest.mark.parametrize("frames", [1, 2, 9, 11])
def test_short_utterance_decode_is_chunk_invariant(pair: Pair, frames: int) -> None:
    codes = random_codes(pair.codec, 1, frames)
    whole = pair.one_shot(codes)
    for sizes in ([1] * frames, [frames], [1, frames]):
        assert (stream(pair.codec, codes, sizes) - whole).abs().max() <= pair.tolerance


def test_fewer_codebooks_decode_and_encode_as_published(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    full, spoken = pair.codec.spec, pair.codec.spec.num_codebooks // 2
    pcm = np.random.default_rng(0).normal(0, 0.1, 5 * full.samples_per_frame).astype(np.float32)
    codes = pair.codec.encode(pcm)
    monkeypatch.setattr(pair.codec, "spec", full.with_codebooks(spoken))
    assert np.array_equal(pair.codec.encode(pcm), codes[:spoken])
    codes = random_codes(pair.codec, 2, 23)
    assert codes.shape[1] == spoken
    assert (stream(pair.codec, codes, chunks_of(5, 23)) - pair.one_shot(codes)).abs().max() <= pair.tolerance


def test_ragged_chunk_decode_matches_one_shot_decode(pair: Pair) -> None:
    codes = random_codes(pair.codec, 1, FRAMES)
    streamed = stream(pair.codec, codes, [11, 1, 3, 0, 9, 2, FRAMES])
    assert (streamed - pair.one_shot(codes)).abs().max() <= pair.tolerance


def test_one_frame_less_context_on_either_side_changes_the_output(pair: Pair) -> None:
    codec, first, frames = pair.codec, 13, 3
    codes, hop = random_codes(pair.codec, 1, FRAMES), pair.codec.spec.samples_per_frame
    wanted = pair.one_shot(codes)[:, first * hop : (first + frames) * hop]
    exact = (codec.spec.left_frames, codec.spec.right_frames)
    assert exact == (10, 10)
    errors = []
    for left, right in (exact, (9, 10), (10, 9)):
        window = Window(
            codes[:, :, first - left : first + frames + right], left, right, torch.tensor([first]), torch.zeros(1, 0)
        )
        errors.append(float((codec.decode(window)[0] - wanted).abs().max()))
    assert errors[0] <= pair.tolerance
    if pair.tolerance < 1e-9:  # in float32 the outermost frames drown in rounding
        assert min(errors[1:]) > 100 * pair.tolerance


def test_encoding_yields_whole_frames_of_codes(pair: Pair) -> None:
    codec, hop = pair.codec, pair.codec.spec.samples_per_frame
    noise = np.random.default_rng(0).normal(0, 0.1, 7 * hop).astype(np.float32)
    with torch.inference_mode():
        pcm = torch.from_numpy(noise).to(pair.model.dtype)[None, None]
        expected = pair.model.encode(pcm).audio_codes[0].numpy()
    codes = codec.encode(noise)
    assert codes.dtype == np.int64
    assert np.array_equal(codes, expected)
    assert codes.shape == (codec.spec.num_codebooks, 7)
    assert len(np.unique(codes)) > 4
    assert codec.encode(noise[:0]).shape == (codec.spec.num_codebooks, 0)


def test_last_encoded_frame_is_padded_like_the_feature_extractor(pair: Pair) -> None:
    """The Higgs Audio processor does not do this (`higgs_audio/tests/test_codec.py`)."""
    if pair.codec.spec.name == "higgs":
        return
    hop, rate = pair.codec.spec.samples_per_frame, pair.codec.spec.sample_rate
    extractor = DacFeatureExtractor(sampling_rate=rate, hop_length=hop)
    for length in (1, 2, hop - 1, hop, hop + 1, 2 * hop + 1, 7 * hop - 1, 7919):
        pcm = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
        padded = extractor(pcm, sampling_rate=rate, return_tensors="pt")["input_values"]
        with torch.inference_mode():
            expected = pair.model.encode(padded.to(pair.model.dtype)).audio_codes[0].numpy()
        assert np.array_equal(pair.codec.encode(pcm), expected), length


def test_windowed_codec_carries_no_state(pair: Pair) -> None:
    assert pair.codec.initial_state(3).shape == (3, 0)
