"""Qwen3-Omni's code2wav: chunks give the same samples as a one-shot decode by transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as theirs
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig

from plugins.qwen3_omni.lab.random_code2wav import code2wav_record, code2wav_tensors, write_code2wav
from stretto.codecs.base import load_codec
from stretto.errors import CheckpointError, InvalidRequest
from stretto_qwen3_omni.code2wav import Code2Wav
from tests.codecs.streaming import check_places, chunks_of, random_codes, stream

pytestmark = pytest.mark.usefixtures("one_thread")
HOP, SHORT, FRAMES = 1920, 555, 90  # more frames than a window has


def exact_norm(self: Any, x: Tensor) -> Tensor:
    """Return the authors' norm in the precision of its input."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_code2wav(tmp_path_factory.mktemp("code2wav"))


@pytest.fixture(scope="module")
def codec(folder: Path) -> Code2Wav:
    loaded = load_codec("qwen3_omni", folder)
    assert isinstance(loaded, Code2Wav)
    return loaded.double()


@pytest.fixture(scope="module")
def model() -> Any:
    made = theirs.Qwen3OmniMoeCode2Wav(Qwen3OmniMoeCode2WavConfig(**code2wav_record()))
    made.load_state_dict(code2wav_tensors(code2wav_record()))
    return made.eval().double()


@pytest.fixture(autouse=True)
def _norms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Qwen3OmniMoeRMSNorm", "Qwen3OmniMoeCode2WavRMSNorm"):
        monkeypatch.setattr(getattr(theirs, name), "forward", exact_norm)


@torch.no_grad()
def test_chunked_decode_equals_one_shot_decode(codec: Code2Wav, model: Any) -> None:
    """They agree to 1e-12 in float64, also for a single frame. transformers' own decode in chunks of 40 differs."""
    codes = random_codes(codec, 1, FRAMES)
    whole, level = model(codes)[:, 0], 0.0
    assert whole.shape == (1, FRAMES * HOP - SHORT)
    for sizes in ([FRAMES], chunks_of(7, FRAMES), [1, 1, 2, 30, 1, 55]):
        difference = (stream(codec, codes, sizes) - whole).abs().max()
        level = max(level, difference.item())
    assert level <= 1e-12
    one = codes[:, :, :1]
    torch.testing.assert_close(stream(codec, one, [1]), model(one)[:, 0], rtol=0, atol=1e-12)
    seams = model.chunked_decode(codes, 40, 25)[:, 0]
    assert seams.shape == (1, whole.shape[1] - 2 * SHORT)


@torch.no_grad()
def test_utterances_at_different_positions_decode_in_one_batch(codec: Code2Wav) -> None:
    codes = random_codes(codec, 2, 12)
    check_places(codec, codes, stream(codec, codes, [12]), 1e-12, (0, 5))


def test_encode_is_refused(codec: Code2Wav) -> None:
    spec = codec.spec
    assert (spec.sample_rate, spec.samples_per_frame, spec.num_codebooks, spec.codebook_size) == (24_000, HOP, 16, 64)
    assert (spec.right_frames, spec.tail_samples) == (1, SHORT)
    with pytest.raises(InvalidRequest, match=r"^audio: expected no audio \(qwen3_omni can only decode\)"):
        codec.encode(torch.zeros(5).numpy())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record.update(model_type="mimi"), "model_type must be qwen3_omni_moe_code2wav, got 'mimi'"),
        (lambda record: record["decoder_config"].pop("sliding_window"), "decoder_config lacks sliding_window"),
        (lambda record: record["decoder_config"].update(num_attention_heads=0), "num_attention_heads must be positive"),
        (lambda record: record["decoder_config"].update(attention_bias=True), "expected {'attention_bias': False}"),
        (lambda record: record.update(decoder_config=[]), "decoder_config must be an object"),
        (lambda record: record["decoder_config"].update(num_hidden_layers=9), "missing"),
    ],
)
def test_mismatched_code2wav_checkpoint_is_refused(
    folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    record = json.loads((folder / "config.json").read_text())
    edit(record)
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_codec("qwen3_omni", tmp_path)
