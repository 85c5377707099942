"""GLM-4-Voice's decoder: its blocks, its warm-up, and files that are refused; `test_reference.py` has the parity."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.releases.random_glm4_voice import write_glm4_voice
from stretto.codecs.base import Blocks
from stretto.codecs.cosyvoice.flow import gaussian
from stretto.codecs.glm4_voice import Glm4VoiceCodec
from stretto.config import DecoderConfig
from stretto.decoder.launching import HostLauncher, capture_shapes, warm_up
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import chunks_of, random_codes, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite
from tests.decoder.test_warming import Capturing
from tests.fakes import RecordedReply

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SIZES = (8, 10, 16)
HISTORY = 90


def with_short_blocks(codec: Glm4VoiceCodec) -> Glm4VoiceCodec:
    short = Glm4VoiceCodec(codec.config, SIZES, HISTORY).to(next(codec.parameters()).dtype)
    short.load_state_dict(codec.state_dict())
    return short.eval().requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def few_solver_steps() -> Iterator[None]:
    """Solve the flow in three steps instead of ten, because how chunks are joined does not depend on their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stretto.codecs.cosyvoice.flow.STEPS", 3)
        yield


class Harmful:
    """Pickled object that runs code when it is loaded."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("harm"),)


class TestGlm4Voice(CodecSuite):
    case = CodecCase(
        name="glm4_voice",
        write=write_glm4_voice,
        spec={"sample_rate": 22_050, "samples_per_frame": 1764, "num_codebooks": 1, "blocks": SIZES, "right_frames": 6},
        prepare=with_short_blocks,
        can_encode=False,
        num_frames=20,
        weights="flow.pt",
        config="config.yaml",
        float32_tolerance=2e-3,
    )

    def test_long_utterance_drops_its_oldest_frames(self, codec: Glm4VoiceCodec) -> None:
        codes = random_codes(codec, 1, 120)
        whole = stream(codec, codes, [120])
        assert codec.blocks.first_needed(codec.blocks.last_border(120)) == 64
        assert whole[:, -20 * codec.spec.samples_per_frame :].square().mean() > 1e-4
        assert torch.equal(stream(codec, codes, chunks_of(11, 120)), whole)

    def test_decoder_streams_blocks_of_concurrent_utterances(self, codec: Glm4VoiceCodec) -> None:
        batch = 3
        codes = random_codes(codec, batch, 30).numpy()
        worker = DecoderWorker(codec, DecoderConfig(codec="glm4_voice", max_batch=4, stop_timeout_s=60))
        try:
            replies: list[list[RecordedReply]] = [[] for _ in range(batch)]
            for index, (start, stop) in enumerate([(0, 5), (5, 8), (8, 30)]):
                for row in range(batch):
                    reply = RecordedReply(None, (str(row), index))
                    chunk = Chunk(index, Segment.AUDIO, is_final=stop == 30)
                    worker.push(str(row), chunk, codes[row, :, start:stop], reply, OutputForm(deterministic=True))
                    replies[row].append(reply)
            for row in range(batch):
                parts = [reply.wait().pcm for reply in replies[row]]
                assert parts[0] is None
                assert [len(part) for part in parts[1:]] == [2 * 1764, 28 * 1764]
                alone = stream(codec, torch.from_numpy(codes[row : row + 1]), [5, 3, 22])[0].numpy()
                assert np.abs(np.concatenate(parts[1:]) - alone).max() < 2e-3
        finally:
            worker.stop()

    def test_all_block_sizes_are_warmed_up_and_captured(self, codec: Glm4VoiceCodec) -> None:
        launcher = HostLauncher(codec, "float32")
        assert warm_up(launcher, codec, ChunkPolicy(), max_batch=1, seconds=60.0) == len(SIZES)
        capturing = Capturing(codec)
        assert capture_shapes(capturing, codec, ChunkPolicy(), max_batch=2) == 2 * len(SIZES)
        assert {(batch, 0, SIZES[0], 6) for batch in (2, 1)} <= set(capturing.captured)

    def test_right_context_cannot_be_reduced(self, codec: Glm4VoiceCodec) -> None:
        with pytest.raises(ValueError, match=r"right_frames must be in \[6, 6\]"):
            codec.spec.with_right_frames(5)

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
    def test_incompatible_config_is_refused(self, copied: Path, old: str, new: str, named: str) -> None:
        path = copied / "config.yaml"
        text = path.read_text()
        assert old in text
        path.unlink()
        path.write_text(text.replace(old, new))
        self.assert_refused(copied, named)

    def test_pickled_code_is_not_run(self, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        path = copied / "flow.pt"
        path.unlink()
        torch.save({"weight": Harmful()}, path)
        self.assert_refused(copied, "flow.pt: expected tensors")
        path.write_bytes(pickle.dumps(Harmful()))
        self.assert_refused(copied, "flow.pt: expected tensors")
        assert not (tmp_path / "harm").exists()

    def test_missing_vocoder_is_refused(self, copied: Path) -> None:
        (copied / "hift.pt").unlink()
        self.assert_refused(copied, "hift.pt is missing")


def test_block_borders_and_history_follow_the_sizes() -> None:
    blocks = Blocks((25, 50, 100, 150, 200), right=6, history=512, step=64)
    frames = (24, 25, 74, 75, 324, 325, 524, 525, 725)
    assert [blocks.last_border(frame) for frame in frames] == [0, 25, 25, 75, 175, 325, 325, 525, 725]
    borders = (25, 325, 512, 513, 525, 725, 925)
    assert [blocks.first_needed(border) for border in borders] == [0, 0, 0, 64, 64, 256, 448]
    borders = (0, 25, 75, 175, 325, 525, 461)
    assert [blocks.size_after(border) for border in borders] == [25, 50, 100, 150, 200, 200, 200]


@pytest.mark.parametrize("wrong", [{"right": 8}, {"history": 40, "sizes": (8, 60, 16)}, {"sizes": ()}], ids=str)
def test_invalid_block_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="blocks must be longer"):
        replace(Blocks(SIZES, 6, HISTORY, 1), **wrong)


def test_noise_does_not_depend_on_its_length() -> None:
    assert torch.equal(gaussian(40, 80, 42)[:, :30], gaussian(30, 80, 42))
