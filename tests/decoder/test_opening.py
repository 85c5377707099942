from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DacModel

from lab.releases.random_codecs import write_checkpoint
from stretto.config import DecoderConfig
from stretto.decoder.windows import Windower
from stretto.decoder.worker import DecoderWorker, open_codec
from stretto.errors import CheckpointError
from stretto.records.chunk import Chunk
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes, stream
from tests.codecs.test_onnx_runtime import SPEC, save
from tests.fakes import RecordedReply


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("dac_16khz", tmp_path_factory.mktemp("dac"))


def test_reduced_right_context_releases_windows_earlier(directory: Path) -> None:
    codes = np.zeros((12, 8), dtype=np.int32)
    exact = open_codec(DecoderConfig(codec="dac"), directory)
    assert Windower(exact.spec).push(codes, False) is None
    window = Windower(open_codec(DecoderConfig(codec="dac", right_frames=3), directory).spec).push(codes, False)
    assert window is not None
    assert window.shape == (0, 5, 3)


def test_right_frames_outside_the_codec_range_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match=r"right_frames must be in \[1, 10\] for dac, got 0"):
        open_codec(DecoderConfig(codec="dac", right_frames=0), directory)


def test_missing_onnx_codec_error_names_the_export_script(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"codec\.onnx is missing: scripts/export_onnx\.py writes it"):
        open_codec(DecoderConfig(codec="dac", runtime="onnx"), directory)


def test_codec_can_decode_with_only_its_first_codebooks(directory: Path) -> None:
    codec = open_codec(DecoderConfig(codec="dac", num_codebooks=4), directory)
    codes = random_codes(codec, 1, 15)
    model = DacModel.from_pretrained(directory).eval()
    with torch.inference_mode():
        wanted = model.decode(audio_codes=codes).audio_values.clamp(-1, 1)
    assert (stream(codec, codes, [5, 5, 5]) - wanted).abs().max() <= 1e-5
    with pytest.raises(CheckpointError, match="expected 1 to 12 codebooks of dac, got 13"):
        open_codec(DecoderConfig(codec="dac", num_codebooks=13), directory)


def test_onnx_file_with_wrong_codebook_count_is_refused(tmp_path: Path) -> None:
    save(tmp_path, replace(SPEC, name="dac"))
    config = DecoderConfig(codec="dac", runtime="onnx", num_codebooks=SPEC.num_codebooks)
    assert open_codec(config, tmp_path).spec.num_codebooks == SPEC.num_codebooks
    with pytest.raises(CheckpointError, match="expected dac exported for 1 codebooks, got 2"):
        open_codec(replace(config, num_codebooks=1), tmp_path)


def test_worker_sends_all_samples_despite_a_short_last_frame(directory: Path) -> None:
    config = DecoderConfig(codec="dac")
    codec, total = open_codec(config, directory), 23
    codes = random_codes(codec, 1, total)
    worker = DecoderWorker(codec, config)
    replies = []
    for index, start in enumerate(range(0, total, 5)):
        replies.append(RecordedReply())
        chunk = Chunk(index, Segment.AUDIO, is_final=start + 5 >= total)
        worker.push("one", chunk, codes[0, :, start : start + 5].numpy(), replies[-1])
    pcm = np.concatenate([reply.pcm for reply in (each.wait() for each in replies) if reply.pcm is not None])
    worker.stop()
    assert pcm.shape == (total * 320 - 8,)
    assert np.abs(pcm - stream(codec, codes, [total])[0].numpy()).max() <= 1e-5
    assert replies[-1].event is not None
    assert replies[-1].event["report"]["audio_s"] == pytest.approx(len(pcm) / 16_000)
