"""Complete utterances: equal codes and voice give the same waveform for any chunks; misfits are reported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.decoder import chunks_of, random_codes, stream
from plugins.chatterbox.lab import random_chatterbox
from stretto.codecs.base import Window
from stretto.config import DecoderConfig
from stretto.decoder.launching import HostLauncher, warm_up
from stretto.decoder.streaming import Windower
from stretto.decoder.worker import DecoderWorker
from stretto.errors import CheckpointError, InvalidRequest
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from stretto_chatterbox.s3gen import LONGEST, S3GenCodec, load
from tests.fakes import RecordedReply

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
FRAMES = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_chatterbox.convert(tmp_path_factory.mktemp("chatterbox"))


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> S3GenCodec:
    return load(checkpoint)


def test_codec_spec_matches_the_published_one(codec: S3GenCodec) -> None:
    spec = codec.spec
    assert (spec.sample_rate, spec.samples_per_frame, spec.num_codebooks, spec.frame_rate) == (24_000, 960, 1, 25)
    assert (spec.blocks, spec.max_frames, spec.left_frames, spec.right_frames) == ((), 1000, 0, 0)
    assert (spec.codebook_size, spec.num_voices) == (6561, 2)


def test_each_decode_step_reports_progress(codec: S3GenCodec) -> None:
    """Decoding may take minutes."""
    steps = list[int]()
    codec.report_progress(lambda: steps.append(1))
    stream(codec, random_codes(codec, 2, FRAMES), [FRAMES])
    assert len(steps) == 2 * 10
    codec.flow.decoder.on_step = None


def test_samples_do_not_depend_on_chunking_or_batching(codec: S3GenCodec) -> None:
    codes = random_codes(codec, 2, FRAMES)
    whole = stream(codec, codes, [FRAMES])
    assert whole.shape == (2, FRAMES * 960)
    assert whole.square().mean() > 1e-5
    for sizes in (chunks_of(1, FRAMES), chunks_of(5, FRAMES)):
        assert torch.equal(stream(codec, codes, sizes), whole)
    for row, alone in enumerate(codes):
        assert torch.equal(stream(codec, alone[None], [FRAMES])[0], whole[row])


def test_batch_rows_use_their_own_voices(codec: S3GenCodec) -> None:
    codes, first = random_codes(codec, 1, FRAMES).repeat(2, 1, 1), torch.zeros(2, dtype=torch.int64)
    pcm, state = codec.decode(Window(codes, 0, 0, first, torch.tensor([[1.0], [0.0]])))
    assert state.tolist() == [[1], [0]]
    assert torch.equal(pcm[1:], stream(codec, codes[:1], [FRAMES]))
    assert (pcm[0] - pcm[1]).abs().max() > 1e-3


def test_decoder_uses_the_named_voice_at_the_end(codec: S3GenCodec) -> None:
    codes = random_codes(codec, 1, FRAMES)
    worker = DecoderWorker(codec, DecoderConfig(codec="s3gen", max_batch=4, stop_timeout_s=60))
    try:
        replies = {}
        for voice in (0, 1, 2):
            for index, (start, stop) in enumerate([(0, 5), (5, FRAMES)]):
                reply = replies[voice, index] = RecordedReply(None, (str(voice), index))
                chunk = Chunk(index, Segment.AUDIO, is_final=stop == FRAMES, voice=voice)
                worker.push(str(voice), chunk, codes[0, :, start:stop].numpy(), reply, OutputForm())
        for voice in (0, 1):
            assert replies[voice, 0].wait().pcm is None
            state = torch.full((1, 1), float(voice))
            pcm, _ = codec.decode(Window(codes, 0, 0, torch.zeros(1, dtype=torch.int64), state))
            np.testing.assert_array_equal(replies[voice, 1].wait().pcm, pcm[0].numpy())
        assert "chunk.voice: expected a number in [0, 1], got 2" in str(replies[2, 0].wait().error)
    finally:
        worker.stop()


def test_s3gen_has_no_warm_up_decodes(codec: S3GenCodec) -> None:
    assert warm_up(HostLauncher(codec, "float32"), codec, ChunkPolicy(), max_batch=2, seconds=60.0) == 0


def test_codec_utterance_length_is_limited(codec: S3GenCodec) -> None:
    windower = Windower(codec.spec)
    assert windower.push(np.zeros((1, LONGEST - 1), np.int64), is_final=False) is None
    with pytest.raises(InvalidRequest, match="codes: expected at most 1000 frames in an utterance, got 1001"):
        windower.push(np.zeros((1, 2), np.int64), is_final=False)
    window = Windower(codec.spec).push(np.zeros((1, LONGEST), np.int64), is_final=False)
    assert window is not None
    assert window.shape == (0, LONGEST, 0)


def test_encode_is_refused(codec: S3GenCodec) -> None:
    with pytest.raises(InvalidRequest, match="s3gen can only decode"):
        codec.encode(np.zeros(100, np.float32))


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        (
            "flow.input_embedding.weight",
            None,
            "flow.input_embedding.weight: expected a tensor of 2 dimensions, got none",
        ),
        ("mel2wav.conv_pre.bias", torch.ones(2, 2), r"expected a tensor of 1 dimensions, got \[2, 2\]"),
        ("flow.encoder_proj.bias", None, r"missing: flow.encoder_proj.bias"),
        ("more", torch.ones(1), r"unknown: more"),
        ("voices.1.mel", torch.ones(80, 3), "wrong shape: voices.1.mel"),
    ],
)
def test_error_names_mismatched_tensors(
    checkpoint: Path, tmp_path: Path, name: str, changed: torch.Tensor | None, message: str
) -> None:
    tensors = load_file(checkpoint / "codec" / "model.safetensors")
    if changed is None:
        del tensors[name]
    else:
        tensors[name] = changed
    (tmp_path / "codec").mkdir()
    save_file(tensors, tmp_path / "codec" / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_codec_without_a_voice_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "codec" / "model.safetensors")
    (tmp_path / "codec").mkdir()
    silent = {name: tensor for name, tensor in tensors.items() if not name.startswith("voices.")}
    save_file(silent, tmp_path / "codec" / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected at least one voice, got none"):
        load(tmp_path)
