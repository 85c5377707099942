"""The bundled codec with small random weights, and with its own."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stretto.codecs.base import Window
from stretto.codecs.tiny import codec as tiny
from stretto.codecs.tiny.codec import TinyCodec
from stretto.testing.codec_streams import random_codes, random_pcm, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite
from tests.codecs.conftest import make_codec

BUNDLED = Path(__file__).parents[3] / "model_repository/language_model/1/checkpoint"


def write(folder: Path) -> Path:
    """Write the small codec, whose pitch is in float32 in a file, and return its folder."""
    codec = make_codec()
    (folder / tiny.CONFIG_FILE).write_text(json.dumps(asdict(codec.config)))
    tensors = {name: tensor.float().contiguous() for name, tensor in codec.state_dict().items()}
    save_file(tensors, folder / tiny.WEIGHTS_FILE)
    return folder


class TestTiny(CodecSuite):
    case = CodecCase(
        name="tiny",
        write=write,
        spec={"num_codebooks": 3, "codebook_size": 16},
        num_frames=61,
        positions=(12, 30),
        tolerance=1e-10,
        weights=tiny.WEIGHTS_FILE,
        config=tiny.CONFIG_FILE,
        refused_configs=(({"colour": 1}, tiny.CONFIG_FILE),),
    )

    def test_every_tensor_of_the_state_is_needed(self, codec: TinyCodec) -> None:
        codes = random_codes(codec, 1, 61)
        state = codec.decode(Window(codes[:, :, :20], 0, 0, torch.tensor([0]), codec.initial_state(1)))[1]
        assert state.shape == (1, codec.decoder.state_size)
        assert state.dtype == torch.float64
        window = Window(codes[:, :, 20:], 0, 0, torch.tensor([20]), state)
        expected, _ = codec.decode(window)
        for elements in torch.arange(state.shape[1]).split(codec.decoder.sizes):
            changed = state.clone()
            changed[:, elements] += 0.3
            pcm, _ = codec.decode(replace(window, state=changed))
            assert (pcm - expected).abs().max() > 1e-4, elements

    @pytest.mark.parametrize("length", [1, 299, 301, 899, 901, 7919])
    def test_codes_do_not_depend_on_the_silence_that_follows(self, codec: TinyCodec, length: int) -> None:
        pcm = random_pcm(length)
        codes = codec.encode(pcm)
        silence = np.zeros(-length % codec.spec.samples_per_frame + 1800, np.float32)
        assert np.array_equal(codes, codec.encode(np.concatenate([pcm, silence]))[:, : codes.shape[1]])


def speech_codes() -> Tensor:
    """Return codes [1, K, T] of the teacher's utterance `Your flight to Lisbon leaves from gate twenty.`"""
    return torch.from_numpy(np.load(Path(__file__).parent / "speech_codes.npy")).long()[None]


@pytest.fixture(scope="module")
def bundled() -> TinyCodec:
    return tiny.load(BUNDLED)


@pytest.mark.skipif(not (BUNDLED / tiny.WEIGHTS_FILE).exists(), reason="no bundled weights")
class TestBundledWeights:
    def test_bundled_codec_streams_exactly(self, bundled: TinyCodec) -> None:
        codes = random_codes(bundled, 1, 60)
        difference = stream(bundled, codes, [4, 8, 16, 25, 25]) - stream(bundled, codes, [60])
        assert difference.abs().max() <= 1e-5

    def test_reencoding_recovers_many_first_codebook_codes(self, bundled: TinyCodec) -> None:
        codes = speech_codes()
        again = bundled.encode(stream(bundled, codes, [codes.shape[2]])[0].numpy())
        assert (again[0] == codes[0, 0].numpy()).mean() > 0.4  # chance: 1 / 256

    def test_bundled_codec_files_are_small(self) -> None:
        assert sum((BUNDLED / name).stat().st_size for name in (tiny.CONFIG_FILE, tiny.WEIGHTS_FILE)) < 9_500_000
        assert {str(tensor.dtype) for tensor in load_file(BUNDLED / tiny.WEIGHTS_FILE).values()} >= {"torch.float16"}
