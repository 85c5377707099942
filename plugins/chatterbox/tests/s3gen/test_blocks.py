"""S3Gen in blocks: any chunking gives the samples of a single HiFT pass over the mel of all blocks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plugins.chatterbox.lab import random_chatterbox
from stretto.config import DecoderConfig
from stretto.decoder.launching import HostLauncher, warm_up
from stretto.decoder.worker import DecoderWorker
from stretto.errors import CheckpointError
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import chunks_of, random_codes, stream
from stretto_chatterbox.s3gen import HISTORY, S3GenCodec, load, read_options
from tests.fakes import RecordedReply
from tests.tiers import by_night

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SIZES, SHORT_HISTORY = (20, 24), 30


@pytest.fixture(scope="module", autouse=True)
def few_solver_steps() -> Iterator[None]:
    """Solve the flow in three steps instead of ten, because how chunks are joined does not depend on their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stretto.codecs.cosyvoice.flow.STEPS", 3)
        yield


@pytest.fixture(scope="module", params=["guided", *by_night("mean flow")])
def checkpoint(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    convert = random_chatterbox.convert if request.param == "guided" else random_chatterbox.convert_turbo
    return convert(tmp_path_factory.mktemp("chatterbox"))


def in_blocks(whole: S3GenCodec, sizes: tuple[int, ...], history: int = HISTORY, **options: Any) -> S3GenCodec:
    """Return a codec with the same weights in float64."""
    made = S3GenCodec(whole.config, sizes, history, **options)
    made.load_state_dict(whole.state_dict())
    return made.eval().requires_grad_(False).double()


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> S3GenCodec:
    return load(checkpoint).double()


@pytest.mark.parametrize("frames", [44, *by_night(12, 19, 20, 45, 110)])
def test_samples_do_not_depend_on_chunking(whole: S3GenCodec, frames: int) -> None:
    """Utterances end with a block, after it and before it; the longest ones exceed the history."""
    codec = in_blocks(whole, SIZES, SHORT_HISTORY)
    codes = random_codes(codec, 2, frames)
    once = stream(codec, codes, [frames])
    assert once.shape == (2, codec.spec.num_samples(frames, 0))
    assert once.square().mean() > 1e-5
    for size in (1, 7, 24):
        assert torch.equal(stream(codec, codes, chunks_of(size, frames)), once)
    for row, alone in enumerate(codes):
        assert torch.equal(stream(codec, alone[None], [frames])[0], once[row])


@pytest.mark.parametrize("frames", [1, 44, *by_night(12)])
def test_single_block_decode_equals_whole_decode(whole: S3GenCodec, frames: int) -> None:
    codes = random_codes(whole, 1, frames)
    assert torch.equal(stream(in_blocks(whole, (45,)), codes, [frames]), stream(whole, codes, [frames]))


def test_block_vocoder_equals_one_pass_over_the_whole_mel(whole: S3GenCodec) -> None:
    """Its context and phase are carried over, so samples depend on block borders only through the mel."""
    codec, frames = in_blocks(whole, SIZES, SHORT_HISTORY), 110
    codes, mels, continued = random_codes(codec, 1, frames), list[Tensor](), codec.mel

    def recording(*arguments: Any) -> Tensor:
        known = 0 if len(arguments) < 3 or arguments[2] is None else arguments[2].shape[2]
        mels.append(continued(*arguments)[..., known:])
        return torch.cat([arguments[2], mels[-1]], 2) if known else mels[-1]

    codec.mel = recording  # type: ignore[method-assign]
    pcm = stream(codec, codes, chunks_of(7, frames))
    mel = torch.cat(mels, 2)
    assert mel.shape[2] == 2 * (frames + codec.num_silent)
    expected = codec._vocode(mel, mel.shape[2], 0, mel.shape[2], torch.zeros((), dtype=torch.float64))[0]
    assert (pcm[0] - expected).abs().max() < 1e-7 * expected.abs().max()
    single = stream(whole, codes, [frames])
    assert (pcm - single).square().mean() > 1e-4 * single.square().mean()  # blocks do change the mel


def test_first_block_is_sent_once_complete(whole: S3GenCodec) -> None:
    """Samples of its last tokens follow with the next block, because the vocoder needs further mel frames."""
    spec = in_blocks(whole, (28, 50, 100)).spec
    assert (spec.blocks, spec.right_frames, spec.max_frames) == ((28, 50, 100), 13, None)
    assert [spec.complete(frames) for frames in (27, 28, 77, 78)] == [0, 28, 28, 78]


def test_decoder_sends_blocks_before_the_utterance_ends(whole: S3GenCodec) -> None:
    """The named voice is used. The decoder's warm-up also decodes blocks."""
    codec, frames = in_blocks(whole, SIZES, SHORT_HISTORY).float(), 50
    codes = random_codes(codec, 1, frames)
    assert warm_up(HostLauncher(codec, "float32"), codec, ChunkPolicy(), max_batch=1, seconds=60.0) > 0
    worker = DecoderWorker(codec, DecoderConfig(codec="s3gen", max_batch=4, stop_timeout_s=60))
    try:
        replies = {}
        for voice in (0, 1):
            for index, (start, stop) in enumerate([(0, 20), (20, 44), (44, frames)]):
                reply = replies[voice, index] = RecordedReply(None, (str(voice), index))
                chunk = Chunk(index, Segment.AUDIO, is_final=stop == frames, voice=voice)
                worker.push(str(voice), chunk, codes[0, :, start:stop].numpy(), reply, OutputForm())
        sent = {key: reply.wait().pcm for key, reply in replies.items()}
    finally:
        worker.stop()
    assert [len(sent[0, index]) // 960 for index in range(3)] == [7, 24, 19 + codec.num_silent]
    pcm = np.concatenate([sent[0, index] for index in range(3)])
    np.testing.assert_allclose(pcm, stream(codec, codes, [frames])[0].numpy(), atol=1e-4)
    assert np.abs(sent[0, 0] - sent[1, 0]).max() > 1e-3


def test_last_token_of_multilingual_replies_is_not_played(whole: S3GenCodec) -> None:
    for sizes in ((), SIZES):
        codec, all_played = in_blocks(whole, sizes, leaves_out_last=True), in_blocks(whole, sizes)
        for frames in (1, 2, 44):
            codes = random_codes(codec, 1, frames)
            played = stream(codec, codes, chunks_of(7, frames))
            assert played.shape[1] == 960 * max(1, frames - 1)
            assert torch.equal(played, stream(all_played, codes, [frames])[:, : played.shape[1]])


def write_options(checkpoint: Path, **options: Any) -> Path:
    """Write a codec's config.json with additional keys."""
    path = checkpoint / "codec" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return path


def test_checkpoint_block_sizes_set_the_request_chunking(tmp_path: Path) -> None:
    checkpoint = random_chatterbox.convert(tmp_path)
    write_options(checkpoint, blocks=[20, 50], history=100)
    assert load(checkpoint).spec.blocks == (20, 50)
    prompt = Preprocessor(checkpoint).prepare(RawRequest(text="hello"))
    assert prompt.delivery.chunking.blocks == (20, 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 28}, "blocks: expected at most 16 numbers of tokens in [1, 1000], got 28"),
        ({"blocks": [28, -50]}, "blocks: expected at most 16 numbers"),
        ({"blocks": [28] * 17}, "blocks: expected at most 16 numbers"),
        ({"blocks": [10**15]}, "blocks: expected at most 16 numbers"),
        ({"blocks": [True]}, "blocks: expected at most 16 numbers"),
        ({"blocks": [13]}, "blocks of more than 13 tokens"),
        ({"blocks": [28, 50], "history": 28}, "fit into the history of 28"),
        ({"history": 10**9}, "history: expected a number of tokens in [1, 1000]"),
        ({"leaves_out_last": 1}, "leaves_out_last: expected true or false, got 1"),
    ],
)
def test_error_names_invalid_codec_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(options))
    with pytest.raises(CheckpointError) as error:
        read_options(path)
    assert message in str(error.value)
