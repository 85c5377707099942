"""Exported decoders in onnxruntime, on one thread, against torch; server/test_onnx.py tests the bundled one."""

import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import onnx
import pytest
import torch

from lab.releases.random_codecs import codec_of, make_model
from scripts import export_onnx
from scripts.export_onnx import export_codec, export_mel
from stretto.codecs import onnx_runtime
from stretto.codecs.base import Codec, load_codec
from stretto.codecs.tiny.codec import HOP, NUM_MELS, log_mel
from stretto.config import DecoderConfig
from stretto.decoder.worker import open_codec
from stretto.testing.codec_streams import chunks_of, random_codes, stream
from tests.fakes import FakeCodec

FRAMES = 29
pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*axis name:UserWarning"),
]


@pytest.fixture(scope="module")
def apart() -> Iterator[Executor]:
    """Export in a separate process, as the command does, because torch keeps state from other traces."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def export(name: str, directory: Path, file: Path) -> None:
    export_codec(load_codec(codec_of(name), directory), file)


BY_NIGHT = ("higgs", "dac_16khz")  # their decoders are of X-codec's class and are exported in the same way


@pytest.fixture(
    scope="module", params=["xcodec", *(pytest.param(name, marks=pytest.mark.nightly) for name in BY_NIGHT)]
)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, apart: Executor
) -> tuple[Codec, Codec]:
    """Return a random codec and the exported codec as the decoder opens it."""
    name, directory = request.param, tmp_path_factory.mktemp(request.param)
    make_model(name).save_pretrained(directory / "codec")
    codec, file = load_codec(codec_of(name), directory), export_onnx.codec_file(directory)
    apart.submit(export, name, directory, file).result(600)
    onnx.checker.check_model(str(file), full_check=True)
    return codec, open_codec(DecoderConfig(codec=codec_of(name), runtime="onnx"), directory)


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 2), (2, 13), (5, 7), (1, 60)])
def test_onnxruntime_samples_match_torch_for_any_shape(pair: tuple[Codec, Codec], batch: int, frames: int) -> None:
    codec, exported = pair
    codes = random_codes(codec, batch, frames)
    expected = stream(codec, codes, [frames])
    assert exported.spec == codec.spec
    assert (stream(exported, codes, [frames]) - expected).abs().max() <= 1e-4
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("size", [1, 5, 25])
def test_an_exported_decoder_streams_exactly(pair: tuple[Codec, Codec], size: int) -> None:
    _, exported = pair
    codes = random_codes(exported, 2, FRAMES)
    streamed, whole = stream(exported, codes, chunks_of(size, FRAMES)), stream(exported, codes, [FRAMES])
    assert (streamed - whole).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def mel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mel") / "mel.onnx"
    export_mel(file)
    return file


def test_feature_extractor_accepts_any_pcm_length(mel: Path) -> None:
    session = onnx_runtime.open_session(mel)
    for batch, length in ((1, HOP), (2, 12_345), (3, 16_000)):
        pcm = torch.randn(batch, length, generator=torch.Generator().manual_seed(0)) / 10
        [features] = session.run(["log_mel"], {"pcm": pcm.numpy()})
        assert features.shape == (batch, length // HOP, NUM_MELS)
        assert (torch.from_numpy(features) - log_mel(pcm)).abs().max() <= 1e-4


def test_codec_state_that_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fake carries a state that cannot be exported"):
        export_codec(FakeCodec(), tmp_path / "codec.onnx")


@pytest.fixture
def command(mel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the command line that exports the feature extractor again, and its output path."""
    out = tmp_path / "mel.onnx"
    monkeypatch.setattr(sys, "argv", ["export_onnx", "mel", "--out", str(out)])
    monkeypatch.setattr(export_onnx, "export_mel", lambda file: shutil.copy(mel, file))
    return out


def test_last_output_line_has_size_speed_and_difference(command: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_onnx.main()
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["file_bytes"] == command.stat().st_size
    assert row["max_difference"] <= 1e-4
    assert row["torch_ms"] > 0 < row["onnx_ms"]


def test_onnx_export_fails_on_difference_from_torch(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "log_mel", lambda pcm: log_mel(pcm) + 0.01)
    with pytest.raises(SystemExit, match="differs from torch"):
        export_onnx.main()
