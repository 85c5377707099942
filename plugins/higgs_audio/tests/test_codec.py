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
from plugins.higgs_audio.tests.test_resampling import slow_resample
from stretto.errors import CheckpointError
from stretto_higgs_audio import codec as higgs
from tests.codecs.streaming import chunks_of, random_codes, stream

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
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> torch.nn.Module:
    """Save transformers' tokenizer in its own format and return the folder."""
    ours = make_model("higgs")
    model = transformers_class(monkeypatch)(ours.config).eval()
    model.load_state_dict(ours.state_dict(), strict=True)
    model.save_pretrained(tmp_path)
    return model.requires_grad_(False)


def test_higgs_decode_matches_transformers(published: torch.nn.Module, tmp_path: Path) -> None:
    codec = higgs.load(tmp_path)
    codes = random_codes(codec, 2, 14)
    whole = published.decode(codes).audio_values[:, 0].clamp(-1, 1)
    assert (stream(codec, codes, chunks_of(3, 14)) - whole).abs().max() <= 1e-5
    assert codec.spec.num_codebooks == 8
    assert codec.spec.frame_rate == 25


# 119 are the fewest from which transformers makes a code; a hop is 960, a feature of HuBERT 480.
LENGTHS = [
    119,
    120,
    121,
    479,
    480,
    481,
    839,
    840,
    959,
    960,
    961,
    1439,
    1441,
    1919,
    1921,
    4799,
    4800,
    4801,
    7919,
    40_009,
]


def test_encode_matches_transformers_at_any_length(published: torch.nn.Module, tmp_path: Path) -> None:
    codec, model = higgs.load(tmp_path).double(), published.double()  # float64: no nearest neighbour is a tie
    chance, frames = np.random.default_rng(0), set()
    for length in LENGTHS:
        pcm = chance.normal(0, 0.1, length).astype(np.float32)
        expected = model.encode(torch.from_numpy(pcm).double()[None, None]).audio_codes[0].numpy()
        assert np.array_equal(codec.encode(pcm), expected), length
        frames.add(expected.shape[1] - length // codec.spec.samples_per_frame)
    assert frames == {0, 1}


def test_checkpoint_of_another_codec_is_refused(published: torch.nn.Module, tmp_path: Path) -> None:
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"higgs_audio_v2_tokenizer"', '"xcodec"'))
    with pytest.raises(CheckpointError, match="model_type must be higgs_audio_v2_tokenizer, got xcodec"):
        higgs.load(tmp_path)
