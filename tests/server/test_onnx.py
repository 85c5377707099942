"""The bundled model with its decoder running from the exported file, as docs/decoder.md says."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.checkpoints.bundled import CHECKPOINT
from benchmarks.code_streams import stream
from scripts.export_onnx import codec_file, export_codec
from stretto.codec.registry import load_codec
from stretto.families.tiny.family import TINY
from tests.server.conftest import Server

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*axis name:UserWarning"),
]
RUNTIME = 'parameters { key: "runtime" value { string_value: "onnx" } }\n'


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a copy of the bundled repository, with the two changes that docs/decoder.md names."""
    folder = tmp_path_factory.mktemp("onnx")
    repository = shutil.copytree("model_repository", folder / "repository")
    export_codec(load_codec("tiny", CHECKPOINT), codec_file(repository / "language_model/1/checkpoint"))
    with (repository / "acoustic_decoder/config.pbtxt").open("a") as config:
        config.write(RUNTIME)
    server = Server(folder, repository)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_a_sentence_from_the_exported_decoder_is_torchs_waveform(exported: Server) -> None:
    assert "onnxruntime" in maps_of_the_decoder(exported)
    options = {"seed": 7, "max_audio_s": 3.0, "output": {"codes": True}}
    answer = exported.ask(options, text="the garden door is open")
    assert answer.error is None
    told = np.concatenate([np.array(event["codes"]) for event in answer.events if "codes" in event], axis=1)
    codes = torch.from_numpy(told[list(TINY.layout.codebook_streams)])
    wanted = stream(load_codec("tiny", CHECKPOINT), codes[None], [codes.shape[1]])[0].numpy()
    assert len(answer.responses) > 2
    assert len(answer.pcm) == len(wanted) > 16_000
    assert np.abs(answer.pcm - wanted).max() <= 1e-4
    assert np.abs(wanted).max() > 0.05


def maps_of_the_decoder(server: Server) -> str:
    """What the process of the acoustic decoder has loaded."""
    stubs = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    [decoder] = [pid for pid in stubs if "acoustic_decoder" in Path(f"/proc/{pid}/cmdline").read_text()]
    return Path(f"/proc/{decoder}/maps").read_text()
