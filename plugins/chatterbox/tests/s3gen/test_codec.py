"""Complete utterances: equal codes and voice give the same waveform for any chunks; misfits are reported."""

from pathlib import Path

import numpy as np
import pytest
import torch

from plugins.chatterbox.lab import random_chatterbox
from stretto.codecs.base import Window
from stretto.config import DecoderConfig
from stretto.decoder.launching import HostLauncher, warm_up
from stretto.decoder.windows import Windower
from stretto.decoder.worker import DecoderWorker
from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite
from stretto_chatterbox.s3gen import LONGEST, S3GenCodec
from tests.fakes import RecordedReply

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
FRAMES = 12


def write(folder: Path) -> Path:
    return random_chatterbox.convert(folder)


WEIGHTS = "codec/model.safetensors"


class TestS3Gen(CodecSuite):
    case = CodecCase(
        name="s3gen",
        write=write,
        spec={
            "sample_rate": 24_000,
            "samples_per_frame": 960,
            "num_codebooks": 1,
            "frame_rate": 25,
            "blocks": (),
            "max_frames": 1000,
            "left_frames": 0,
            "right_frames": 0,
            "codebook_size": 6561,
            "num_voices": 2,
        },
        can_encode=False,
        num_frames=FRAMES,
        tolerance=0,
        float32_tolerance=0,
        weights=WEIGHTS,
        config=WEIGHTS,
        name_if_missing=lambda name: name.split(".")[0],
        refused_edits=(
            (
                WEIGHTS,
                lambda tensors: tensors.pop("flow.input_embedding.weight"),
                "flow.input_embedding.weight: expected a tensor of 2 dimensions, got none",
            ),
            (
                WEIGHTS,
                lambda tensors: tensors.update({"mel2wav.conv_pre.bias": torch.ones(2, 2)}),
                "expected a tensor of 1 dimensions, got [2, 2]",
            ),
            (
                WEIGHTS,
                lambda tensors: tensors.update({"voices.1.mel": torch.ones(80, 3)}),
                "wrong shape: voices.1.mel",
            ),
            (
                WEIGHTS,
                lambda tensors: [tensors.pop(name) for name in [*tensors] if name.startswith("voices.")],
                "expected at least one voice, got none",
            ),
        ),
    )

    def test_each_decode_step_reports_progress(self, codec: S3GenCodec) -> None:
        """Decoding may take minutes."""
        steps = list[int]()
        codec.report_progress(lambda: steps.append(1))
        stream(codec, random_codes(codec, 2, FRAMES), [FRAMES])
        assert len(steps) == 2 * 10
        codec.flow.decoder.on_step = None

    def test_batch_rows_use_their_own_voices(self, codec: S3GenCodec) -> None:
        codes = random_codes(codec, 1, FRAMES).repeat(2, 1, 1)
        first = torch.zeros(2, dtype=torch.int64)
        pcm, state = codec.decode(Window(codes, 0, 0, first, torch.tensor([[1.0], [0.0]])))
        assert state.tolist() == [[1], [0]]
        assert torch.equal(pcm[1:], stream(codec, codes[:1], [FRAMES]))
        assert (pcm[0] - pcm[1]).abs().max() > 1e-3

    def test_decoder_uses_the_named_voice_at_the_end(self, codec: S3GenCodec) -> None:
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

    def test_s3gen_has_no_warm_up_decodes(self, codec: S3GenCodec) -> None:
        assert warm_up(HostLauncher(codec, "float32"), codec, ChunkPolicy(), max_batch=2, seconds=60.0) == 0

    def test_codec_utterance_length_is_limited(self, codec: S3GenCodec) -> None:
        windower = Windower(codec.spec)
        assert windower.push(np.zeros((1, LONGEST - 1), np.int64), is_final=False) is None
        with pytest.raises(InvalidRequest, match="codes: expected at most 1000 frames in an utterance, got 1001"):
            windower.push(np.zeros((1, 2), np.int64), is_final=False)
        window = Windower(codec.spec).push(np.zeros((1, LONGEST), np.int64), is_final=False)
        assert window is not None
        assert window.shape == (0, LONGEST, 0)
