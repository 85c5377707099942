"""Equal codes give the same waveform for any chunks; checkpoints that do not fit are refused."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.decoder import chunks_of, random_codes, stream
from lab.releases.random_glm4_voice import write_glm4_voice
from stretto.codecs.base import Blocks
from stretto.codecs.cosyvoice.flow import gaussian
from stretto.codecs.glm4_voice import Glm4VoiceCodec, load, load_part, read_config
from stretto.config import DecoderConfig
from stretto.decoder.launching import HostLauncher, capture_shapes, warm_up
from stretto.decoder.worker import DecoderWorker
from stretto.errors import CheckpointError, InvalidRequest
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from tests.decoder.test_warming import Capturing
from tests.fakes import RecordedReply
from tests.tiers import by_night

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SIZES, HISTORY = (8, 10, 16), 90


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glm4_voice(tmp_path_factory.mktemp("glm4_voice"))


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> Glm4VoiceCodec:
    """Return a codec with short blocks."""
    codec = Glm4VoiceCodec(read_config(checkpoint), SIZES, HISTORY)
    load_part(codec.flow, checkpoint, "flow")
    load_part(codec.hift, checkpoint, "hift")
    return codec.eval().requires_grad_(False)


def test_block_borders_and_history_follow_the_sizes() -> None:
    blocks = Blocks((25, 50, 100, 150, 200), right=6, history=512, step=64)
    assert [blocks.last_border(frames) for frames in (24, 25, 74, 75, 324, 325, 524, 525, 725)] == [
        *(0, 25, 25, 75, 175, 325, 325, 525, 725)
    ]
    assert [blocks.first_needed(border) for border in (25, 325, 512, 513, 525, 725, 925)] == [0, 0, 0, 64, 64, 256, 448]
    assert [blocks.size_after(border) for border in (0, 25, 75, 175, 325, 525, 461)] == [
        25,
        50,
        100,
        150,
        200,
        200,
        200,
    ]


@pytest.mark.parametrize("wrong", [{"right": 8}, {"history": 40, "sizes": (8, 60, 16)}, {"sizes": ()}], ids=str)
def test_invalid_block_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="blocks must be longer"):
        replace(Blocks(SIZES, 6, HISTORY, 1), **wrong)


@pytest.mark.parametrize("frames", [9, *by_night(1, 8, 34, 37)])
def test_samples_do_not_depend_on_chunking(codec: Glm4VoiceCodec, frames: int) -> None:
    """This also holds if the utterance ends with a block that its last chunk may or may not contain."""
    codes = random_codes(codec, 2, frames)
    whole = stream(codec, codes, [frames])
    assert whole.shape == (2, frames * codec.spec.samples_per_frame)
    assert whole.square().mean() > 1e-4
    for sizes in (chunks_of(1, frames), [8, 10, 16, 16], [9, frames]):
        if sum(sizes) >= frames:
            assert torch.equal(stream(codec, codes, sizes), whole), sizes


def test_glm4_voice_long_utterance_is_chunk_invariant(codec: Glm4VoiceCodec) -> None:
    frames = 120
    codes = random_codes(codec, 1, frames)
    whole = stream(codec, codes, [frames])
    assert codec.blocks.first_needed(codec.blocks.last_border(frames)) == 64
    assert whole[:, -20 * codec.spec.samples_per_frame :].square().mean() > 1e-4
    assert torch.equal(stream(codec, codes, chunks_of(11, frames)), whole)


def test_glm4_voice_batched_decode_matches_single_decode(codec: Glm4VoiceCodec) -> None:
    codes = random_codes(codec, 2, 20)
    together = stream(codec, codes, chunks_of(8, 20))
    for row, alone in enumerate(codes):
        assert (stream(codec, alone[None], chunks_of(8, 20)) - together[row]).abs().max() < 2e-3


def test_noise_does_not_depend_on_its_length() -> None:
    assert torch.equal(gaussian(40, 80, 42)[:, :30], gaussian(30, 80, 42))


@pytest.mark.parametrize("batch", [3, *by_night(1)])
def test_decoder_streams_blocks_of_concurrent_utterances(codec: Glm4VoiceCodec, batch: int) -> None:
    codes = random_codes(codec, batch, 30).numpy()
    worker = DecoderWorker(codec, DecoderConfig(codec="glm4_voice", max_batch=4, stop_timeout_s=60))
    try:
        replies: list[list[RecordedReply]] = [[] for _ in range(batch)]
        for index, (start, stop) in enumerate([(0, 5), (5, 8), (8, 30)]):
            for row in range(batch):
                reply = RecordedReply(None, (str(row), index))
                chunk = Chunk(index, Segment.AUDIO, is_final=stop == 30)
                form = OutputForm(deterministic=True)
                worker.push(str(row), chunk, codes[row, :, start:stop], reply, form)
                replies[row].append(reply)
        for row in range(batch):
            parts = [reply.wait().pcm for reply in replies[row]]
            assert parts[0] is None
            assert [len(part) for part in parts[1:]] == [2 * 1764, 28 * 1764]
            alone = stream(codec, torch.from_numpy(codes[row : row + 1]), [5, 3, 22])[0].numpy()
            assert np.abs(np.concatenate(parts[1:]) - alone).max() < 2e-3
    finally:
        worker.stop()


def test_glm4_voice_warms_up_and_captures_all_block_sizes(codec: Glm4VoiceCodec) -> None:
    assert warm_up(HostLauncher(codec, "float32"), codec, ChunkPolicy(), max_batch=1, seconds=60.0) == len(SIZES)
    launcher = Capturing(codec)
    assert capture_shapes(launcher, codec, ChunkPolicy(), max_batch=2) == 2 * len(SIZES)
    assert {(batch, 0, SIZES[0], 6) for batch in (2, 1)} <= set(launcher.captured)


def test_encode_and_reduced_right_context_are_refused(codec: Glm4VoiceCodec) -> None:
    with pytest.raises(InvalidRequest, match="glm4_voice can only decode"):
        codec.encode(np.zeros(100, np.float32))
    with pytest.raises(ValueError, match=r"right_frames must be in \[6, 6\]"):
        codec.spec.with_right_frames(5)


def test_codec_spec_matches_the_published_one(checkpoint: Path) -> None:
    spec = load(checkpoint).spec
    assert (spec.sample_rate, spec.samples_per_frame, spec.num_codebooks, spec.frame_rate) == (22_050, 1764, 1, 12.5)
    assert spec.blocks == (25, 50, 100, 150, 200)
    assert (spec.left_frames, spec.right_frames) == (506, 6)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("block_rel_selfattn", "rel_selfattn", "selfattention_layer_type"),
        ("use_cnn_module: False", "use_cnn_module: True", "use_cnn_module"),
        ("solver: 'euler'", "solver: 'midpoint'", "solver"),
        ("in_channels: 320", "in_channels: 240", "in_channels"),
        ("    vocab_size: 64\n", "", "vocab_size"),
        ("hift: !new", "hift !new", "config.yaml"),
    ],
)
def test_incompatible_glm4_voice_decoder_is_refused(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = write_glm4_voice(tmp_path) / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=named):
        load(tmp_path)


def test_error_names_mismatched_tensors(tmp_path: Path) -> None:
    path = write_glm4_voice(tmp_path) / "flow.pt"
    tensors = torch.load(path, weights_only=True)
    tensors["more"] = tensors.pop("encoder_proj.bias")
    tensors["input_embedding.weight"] = torch.zeros(3, 24)
    torch.save(tensors, path)
    with pytest.raises(CheckpointError) as error:
        load(tmp_path)
    for text in ("missing: encoder_proj.bias", "unknown: more", "wrong shape: input_embedding.weight"):
        assert text in str(error.value)


class Harmful:
    """Pickled object that runs code when it is loaded."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("harm"),)


def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_glm4_voice(tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Harmful()}, tmp_path / "flow.pt")
    with pytest.raises(CheckpointError, match=r"flow\.pt: expected tensors"):
        load(tmp_path)
    (tmp_path / "flow.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CheckpointError, match=r"flow\.pt: expected tensors"):
        load(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_missing_vocoder_file_is_reported(tmp_path: Path) -> None:
    write_glm4_voice(tmp_path)
    (tmp_path / "hift.pt").unlink()
    with pytest.raises(CheckpointError, match=r"hift\.pt is missing"):
        load(tmp_path)
