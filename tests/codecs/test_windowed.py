"""Windowed codecs against transformers: DAC at its sample rates, and X-codec."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DacFeatureExtractor, PreTrainedModel

from lab.releases.random_codecs import make_model
from stretto.codecs import xcodec
from stretto.codecs.base import Codec, load_codec
from stretto.errors import CheckpointError, InvalidRequest
from stretto.testing.codec_streams import random_codes, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite

HOPS = {"dac_16khz": 320, "dac_24khz": 320, "dac_44khz": 512, "xcodec": 320}
CODEBOOKS = {"dac_16khz": 12, "dac_24khz": 32, "dac_44khz": 9, "xcodec": 8}


def model_of(model: str, codec: Codec) -> PreTrainedModel:
    """Return the model whose checkpoint the codec was loaded from, in its dtype."""
    assert isinstance(codec, torch.nn.Module)
    return make_model(model).to(next(codec.parameters()).dtype)


@torch.inference_mode()
def decoded(model: str, codec: Codec, codes: Tensor) -> Tensor:
    return model_of(model, codec).decode(audio_codes=codes).audio_values.reshape(len(codes), -1).clamp(-1, 1)


@torch.inference_mode()
def encoded(model: str, codec: Codec, pcm: np.ndarray) -> np.ndarray:
    """Encode a recording whose last frame the feature extractor pads."""
    network = model_of(model, codec)
    rate = codec.spec.sample_rate
    extractor = DacFeatureExtractor(sampling_rate=rate, hop_length=codec.spec.samples_per_frame)
    padded = extractor(pcm, sampling_rate=rate, return_tensors="pt")["input_values"]
    return network.encode(padded.to(network.dtype)).audio_codes[0, : codec.spec.num_codebooks].numpy()


def write(model: str, folder: Path) -> Path:
    make_model(model).save_pretrained(folder)
    return folder


def case_of(name: str, model: str, tail: int) -> CodecCase:
    return CodecCase(
        name=name,
        write=partial(write, model),
        spec={
            "samples_per_frame": HOPS[model],
            "num_codebooks": CODEBOOKS[model],
            "codebook_size": 1024,
            "left_frames": 10,
            "right_frames": 10,
            "tail_samples": tail,
        },
        decoded=partial(decoded, model),
        encoded=partial(encoded, model),
        positions=(12, 25),
        float32_tolerance=1e-4,
    )


class TestDac(CodecSuite):
    """Its odd stride makes the last frame shorter."""

    case = case_of("dac", "dac_24khz", tail=8)


@pytest.mark.nightly
class TestDacAt16Khz(CodecSuite):
    case = case_of("dac", "dac_16khz", tail=8)


@pytest.mark.nightly
class TestDacAt44Khz(CodecSuite):
    case = case_of("dac", "dac_44khz", tail=0)


class TestXcodec(CodecSuite):
    case = case_of("xcodec", "xcodec", tail=0)

    def keep(self, folder: Path, *names: str) -> None:
        """Remove all other parts from a checkpoint."""
        file = folder / "model.safetensors"
        tensors = {name: tensor for name, tensor in load_file(file).items() if name.split(".")[0] in names}
        file.unlink()
        save_file(tensors, file, metadata={"format": "pt"})

    def test_checkpoint_without_encoder_can_decode(
        self, copied: Path, codec: Codec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The memory of the missing parts is undefined: transformers does not initialise HuBERT's weight norm."""
        self.keep(copied, "acoustic_decoder", "quantizer", "fc2")
        monkeypatch.setattr(torch, "empty_like", partial(torch.full_like, fill_value=math.nan))
        bare = xcodec.load(copied)
        codes = random_codes(bare, 1, 12)
        assert torch.equal(stream(bare, codes, [12]), stream(codec, codes, [12]))
        with pytest.raises(InvalidRequest, match=r"audio: expected no audio \(this checkpoint of xcodec can only"):
            bare.encode(np.zeros(320, dtype=np.float32))
        assert isinstance(codec, torch.nn.Module)
        assert sum(map(torch.numel, bare.parameters())) < sum(map(torch.numel, codec.parameters())) / 2

    def test_checkpoint_with_an_incomplete_encoder_is_refused(self, copied: Path) -> None:
        self.keep(copied, "acoustic_decoder", "quantizer", "fc2", "fc")
        self.assert_refused(copied, "missing: ", "semantic_model")

    @pytest.mark.parametrize(
        ("ratios", "message"),
        [
            ([2, 4, 5, 8], r"wrong shape: .*acoustic_decoder\.block\.0\.conv_t1\.weight"),
            ([4, 5, 4, 2], r"wrong shape|expected the product"),
        ],
    )
    def test_other_strides_are_refused(self, copied: Path, ratios: list[int], message: str) -> None:
        """The order changes the decoder's receptive field threefold, so it must not be guessed."""
        file = copied / "config.json"
        record = json.loads(file.read_text())
        record["acoustic_model_config"]["upsampling_ratios"] = ratios
        file.unlink()
        file.write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match=message):
            load_codec("xcodec", copied)

    def test_strides_of_encoder_and_decoder_must_match(self) -> None:
        model = make_model("xcodec")
        model.config.acoustic_model_config.downsampling_ratios = [8, 5, 4, 4]
        with pytest.raises(CheckpointError, match=r"with the product of \[8, 5, 4, 4\], got \[8, 5, 4, 2\]"):
            xcodec.SemanticCodec("xcodec", model, can_encode=True)
