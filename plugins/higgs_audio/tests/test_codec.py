"""The codec against transformers' class; the slow reference replaces that class's only call to torchaudio."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lab.releases.random_codecs import make_model
from stretto.codecs.xcodec import SemanticCodec
from stretto.testing.codec_streams import random_codes, random_pcm, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite
from tests.encoders.test_voice_spectra import slow_resample

pytestmark = pytest.mark.slow

MODULE = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"


def reference_resample(pcm: Tensor, source_hz: int, target_hz: int) -> Tensor:
    rows = [slow_resample(row.numpy(), source_hz, target_hz) for row in pcm[:, 0].double()]
    return torch.from_numpy(np.stack(rows))[:, None].to(pcm.dtype)


def transformers_class(monkeypatch: pytest.MonkeyPatch) -> type[PreTrainedModel]:
    """Import transformers' tokenizer class without torchaudio, and return it."""
    torchaudio = ModuleType("torchaudio")
    torchaudio.functional = SimpleNamespace(resample=reference_resample)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchaudio", torchaudio)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    module = importlib.import_module(MODULE)
    monkeypatch.delitem(sys.modules, MODULE)
    return module.HiggsAudioV2TokenizerModel


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Return transformers' tokenizer with the weights of the checkpoint."""
    ours = make_model("higgs")
    model = transformers_class(monkeypatch)(ours.config).eval()
    model.load_state_dict(ours.state_dict(), strict=True)
    return model.double().requires_grad_(False)


def write(folder: Path) -> Path:
    make_model("higgs").save_pretrained(folder)
    return folder


# 119 are the fewest from which transformers makes a code; a hop is 960, a feature of HuBERT 480.
LENGTHS = (119, 121, 479, 480, 481, 840, 959, 960, 961, 1439, 1441, 1919, 1921, 4799, 4801, 7919, 40_009)


class TestHiggs(CodecSuite):
    case = CodecCase(
        name="higgs",
        write=write,
        spec={"num_codebooks": 8, "frame_rate": 25, "left_frames": 10, "right_frames": 10},
        pads_recordings=False,
        positions=(12, 25),
        float32_tolerance=1e-4,
        refused_configs=(({"model_type": "xcodec"}, "model_type must be higgs_audio_v2_tokenizer, got xcodec"),),
    )

    def test_samples_match_transformers(self, published: torch.nn.Module, exact: SemanticCodec) -> None:
        codes = random_codes(exact, 2, 14)
        whole = published.decode(codes).audio_values[:, 0].clamp(-1, 1)
        assert (stream(exact, codes, [14]) - whole).abs().max() <= 1e-12

    def test_recordings_are_encoded_as_by_transformers(self, published: torch.nn.Module, exact: SemanticCodec) -> None:
        frames = set[int]()
        for length in LENGTHS:
            pcm = random_pcm(length)
            expected = published.encode(torch.from_numpy(pcm).double()[None, None]).audio_codes[0].numpy()
            assert np.array_equal(exact.encode(pcm), expected), length
            frames.add(expected.shape[1] - length // exact.spec.samples_per_frame)
        assert frames == {0, 1}
