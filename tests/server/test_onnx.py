"""The bundled decoder, exported as in docs/decoder.md, against torch and in the server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness import CHECKPOINT
from scripts.export_onnx import codec_file, export_codec
from stretto.codecs.base import Codec, load_codec
from stretto.config import DecoderConfig
from stretto.convert.make_repository import CHECKPOINT as LINK
from stretto.convert.make_repository import DECODER
from stretto.decoder.worker import open_codec
from stretto.families.tiny.family import TINY
from stretto_contract.finish_reasons import limit_of
from tests.scripts.test_export_onnx import (
    test_an_exported_decoder_streams_exactly,
    test_onnxruntime_samples_match_torch_for_any_shape,
)
from tests.server.conftest import Server, served_repository
from tests.server.published import one_shot

# The checks of every exported decoder, on this one's `pair`.
__all__ = ["test_an_exported_decoder_streams_exactly", "test_onnxruntime_samples_match_torch_for_any_shape"]
pytestmark = [
    pytest.mark.server,
    pytest.mark.nightly,  # by day tests/codecs/test_onnx_runtime.py
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*axis name:UserWarning"),
]
RUNTIME = 'parameters { key: "runtime" value { string_value: "onnx" } }\n'


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the bundled repository with the two changes from docs/decoder.md."""
    copy = shutil.copytree("model_repository", tmp_path_factory.mktemp("onnx") / "repository")
    export_codec(load_codec("tiny", CHECKPOINT), codec_file(copy / LINK))
    with (copy / DECODER / "config.pbtxt").open("a") as config:
        config.write(RUNTIME)
    return copy


@pytest.fixture(scope="module")
def pair(repository: Path) -> tuple[Codec, Codec]:
    """Return the bundled codec and the exported codec as the decoder opens it."""
    return load_codec("tiny", CHECKPOINT), open_codec(DecoderConfig(codec="tiny", runtime="onnx"), repository / LINK)


@pytest.fixture(scope="module")
def exported(repository: Path) -> Iterator[Server]:
    with served_repository(repository.parent, repository) as server:
        yield server


def test_exported_decoder_output_matches_torch(exported: Server) -> None:
    assert "onnxruntime" in maps_of_the_decoder(exported)
    options = {"seed": 7, "max_audio_s": 3.0, "output": {"codes": True}}
    answer = exported.ask(options, text="the garden door is open")
    assert answer.error is None
    codes = torch.from_numpy(answer.codes[list(TINY.layout.codebook_streams)])
    wanted = one_shot(load_codec("tiny", CHECKPOINT), codes.numpy(), limit_of(answer.report) is not None)
    assert len(answer.responses) > 2
    assert len(answer.pcm) == len(wanted) > 16_000
    assert np.abs(answer.pcm - wanted).max() <= 1e-4
    assert np.abs(wanted).max() > 0.05


def maps_of_the_decoder(server: Server) -> str:
    """Return the memory map of the acoustic decoder's process."""
    stubs = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    [decoder] = [pid for pid in stubs if "acoustic_decoder" in Path(f"/proc/{pid}/cmdline").read_text()]
    return Path(f"/proc/{decoder}/maps").read_text()
