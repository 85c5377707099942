"""Whole utterances: equal codes and voice give the same waveform for any chunks; misfits are reported."""

from typing import Any

import numpy as np
import pytest
import torch

from plugins.indextts2.lab import codecs
from plugins.indextts2.lab.random_acoustics import NARROW, WIDE, voice
from stretto.codecs.base import Window
from stretto.decoder.windows import SoundTable
from stretto.errors import InvalidRequest
from stretto.records.chunk import Sound
from stretto.testing.codec_streams import random_codes, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite, PublishedCodec
from stretto_indextts2.codec import IndexTtsCodec, num_frames
from stretto_indextts2.flow import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
FRAMES = 20
WEIGHTS = "codec/model.safetensors"
CONFIG = "codec/config.json"


def with_voice(codec: IndexTtsCodec) -> IndexTtsCodec:
    """Return the codec, in which utterances have the voice 1."""
    codec.add_voice(*voice(1))
    codec.initial_state = lambda batch: torch.ones(batch, 1)  # type: ignore[method-assign]
    return codec


class TestIndexTts(CodecSuite):
    case = CodecCase(
        name="indextts2",
        write=codecs.write_codec,
        prepare=with_voice,
        spec={
            "sample_rate": 22_050,
            "samples_per_frame": 440,
            "num_codebooks": 1,
            "blocks": (),
            "max_frames": 63,
            "left_frames": 0,
            "right_frames": 0,
            "codebook_size": 64,
            "num_voices": 0,
        },
        can_encode=False,
        num_frames=FRAMES,
        tolerance=0,
        float32_tolerance=0,
        weights=WEIGHTS,
        config=CONFIG,
        name_if_missing=lambda name: name.split(".")[0],
        refused_configs=(
            ({"heads": 0}, "heads: expected an integer in [1, 256], got 0"),
            ({"heads": 3}, "heads: expected a divisor of 128, got 3"),
            ({"flow_heads": 32}, "flow_heads: expected a divisor of 16, got 32"),
            ({"flow_heads": "2"}, "flow_heads: expected an integer in [1, 256], got '2'"),
        ),
        refused_edits=(
            (
                WEIGHTS,
                lambda tensors: tensors.update({"quantizer.codebook.weight": torch.zeros(65, 4)}),
                "wrong shape: latents.mel_embedding.weight",
            ),
            (
                WEIGHTS,
                lambda tensors: tensors.update({"flow.estimator.cond_x_merge_linear.weight": torch.zeros(32, 192)}),
                "wrong shape: flow.estimator.cond_x_merge_linear.weight",
            ),
            (
                WEIGHTS,
                lambda tensors: tensors.update({"gpt_layer.2.weight": torch.zeros(31, 20)}),
                "wrong shape: gpt_layer.2.weight",
            ),
            (
                WEIGHTS,
                lambda tensors: tensors.update(
                    {"flow.estimator.wavenet.in_layers.0.conv.conv.weight": torch.zeros(64, 32, 17)}
                ),
                "wrong shape: flow.estimator.wavenet.in_layers.0.conv.conv.weight",
            ),
        ),
        published=PublishedCodec(lambda: IndexTtsCodec(WIDE), state_size=1, num_parameters=711_842_304),
    )

    def test_length_is_rounded_as_by_the_authors(self) -> None:
        """They multiply integers by 1.72 in float32."""
        lengths = torch.arange(1, 1816)
        assert [num_frames(length) for length in lengths.tolist()] == (lengths * 1.72).long().tolist()

    def test_steps_report_progress(self, codec: IndexTtsCodec) -> None:
        """Decoding may take minutes."""
        steps = list[int]()
        codec.report_progress(lambda: steps.append(1))
        stream(codec, random_codes(codec, 1, FRAMES), [FRAMES])
        assert len(steps) == NARROW.gpt.layers + STEPS + len(codec.vocoder.resblocks)
        codec.report_progress(lambda: None)

    def test_samples_depend_on_recording_text_and_rows(self, codec: IndexTtsCodec) -> None:
        codes = random_codes(codec, 1, FRAMES)
        first = torch.zeros(1, dtype=torch.int64)

        def spoken(arrays: list[np.ndarray]) -> torch.Tensor:
            number = codec.add_voice(*arrays)
            pcm, _ = codec.decode(Window(codes, 0, 0, first, torch.full((1, 1), float(number))))
            codec.remove_voice(number)
            return pcm

        expected = spoken(voice(1))
        assert torch.equal(expected, stream(codec, codes, [FRAMES]))
        for number, array in enumerate(voice(2)):
            arrays = voice(1)
            arrays[number] = array
            assert (spoken(arrays) - expected).abs().max() > 1e-4, number

    @pytest.mark.parametrize(
        ("number", "array", "message"),
        [
            (0, np.zeros(0, np.int32), "tokens: expected 1 to 750 ids, got 0 ids"),
            (0, np.full(4, 64, np.int32), r"tokens: expected ids in \[0, 64\), got \[64, 64\]"),
            (1, np.zeros((7, 80), np.float32), "mel: expected 8 to 1292 frames, got 7 frames"),
            (1, np.zeros((9, 79), np.float32), r"mel: expected shape \[9, 80\], got \[9, 79\]"),
            (1, np.full((9, 80), np.nan, np.float32), "mel: expected finite numbers"),
            (2, np.zeros(191, np.float32), "x_vector: expected shape"),
            (3, np.zeros(65, np.int32), "text: expected 1 to 64 ids, got 65 ids"),
            (3, np.array([501], np.int32), r"text: expected ids in \[0, 501\)"),
            (4, np.zeros(129, np.float32), r"rows: expected shape \[128\], got \[129\]"),
            (4, np.zeros(65 * 128, np.float32), "rows: expected 1 to 64 rows, got 65 rows"),
        ],
    )
    def test_unfit_voices_are_refused(self, codec: IndexTtsCodec, number: int, array: Any, message: str) -> None:
        arrays: list[Any] = voice(1)
        arrays[number] = array
        voices_before = dict(codec.voices)
        with pytest.raises(InvalidRequest, match=f"chunk.sound.{message}"):
            codec.add_voice(*arrays)
        assert codec.voices == voices_before

    def test_decoder_forgets_the_voice_of_a_finished_reply(self, codec: IndexTtsCodec) -> None:
        table = SoundTable(codec, max_bytes=1 << 30)
        voices_before = dict(codec.voices)
        tokens, mel, style, text, rows = voice(5)
        sound = Sound.from_arrays(tokens, mel, style).with_prompt(text.tolist(), rows)
        number, key = table.acquire(sound)
        assert table.acquire(sound) == (number, key)
        table.release(key)
        assert codec.voices.keys() == voices_before.keys() | {number}
        table.release(key)
        assert codec.voices == voices_before
        assert table.num_bytes == 0

    def test_voice_without_a_prompt_is_refused(self, codec: IndexTtsCodec) -> None:
        with pytest.raises(InvalidRequest, match=r"chunk.sound.text: expected the text of the reply"):
            codec.add_voice(*voice(1)[:3])
