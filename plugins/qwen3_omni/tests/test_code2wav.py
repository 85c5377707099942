"""Qwen3-Omni's code2wav against one decode by transformers; its own decode in chunks drops samples."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as theirs
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig

from plugins.qwen3_omni.lab.random_code2wav import code2wav_record, code2wav_tensors, write_code2wav
from stretto.testing.codec_streams import random_codes, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite
from stretto.testing.releases import REMOVED
from stretto_qwen3_omni.code2wav import Code2Wav

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = 555  # samples that the last frame lacks
FRAMES = 90  # more than a window has


def exact_norm(self: Any, x: Tensor) -> Tensor:
    """Return the authors' norm in the precision of its input."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.fixture(autouse=True)
def _norms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Qwen3OmniMoeRMSNorm", "Qwen3OmniMoeCode2WavRMSNorm"):
        monkeypatch.setattr(getattr(theirs, name), "forward", exact_norm)


@cache
def model(dtype: torch.dtype) -> Any:
    model = theirs.Qwen3OmniMoeCode2Wav(Qwen3OmniMoeCode2WavConfig(**code2wav_record()))
    model.load_state_dict(code2wav_tensors(code2wav_record()))
    return model.eval().to(dtype)


@torch.no_grad()
def decoded(codec: Code2Wav, codes: Tensor) -> Tensor:
    if codes.shape[1] < 16:  # transformers needs all codebooks
        return stream(codec, codes, [codes.shape[2]])
    return model(next(codec.parameters()).dtype)(codes)[:, 0].clamp(-1, 1)


class TestCode2Wav(CodecSuite):
    case = CodecCase(
        name="qwen3_omni",
        write=write_code2wav,
        spec={
            "sample_rate": 24_000,
            "samples_per_frame": 1920,
            "num_codebooks": 16,
            "codebook_size": 64,
            "right_frames": 1,
            "tail_samples": SHORT,
        },
        decoded=decoded,
        can_encode=False,
        num_frames=FRAMES,
        positions=(0, 5),
        refused_configs=(
            ({"model_type": "mimi"}, "model_type must be qwen3_omni_moe_code2wav, got 'mimi'"),
            ({"decoder_config.sliding_window": REMOVED}, "decoder_config lacks sliding_window"),
            ({"decoder_config.num_attention_heads": 0}, "num_attention_heads must be positive"),
            ({"decoder_config.attention_bias": True}, "expected {'attention_bias': False}"),
            ({"decoder_config": []}, "decoder_config must be an object"),
            ({"decoder_config.num_hidden_layers": 9}, "missing"),
        ),
    )

    @torch.no_grad()
    def test_chunked_decode_of_transformers_drops_samples(self, exact: Code2Wav) -> None:
        network = model(torch.float64)
        codes = random_codes(exact, 1, FRAMES)
        assert network.chunked_decode(codes, 40, 25).shape[2] == network(codes).shape[2] - 2 * SHORT
