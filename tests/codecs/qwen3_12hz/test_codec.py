"""The Qwen3-TTS codec; `test_reference.py` compares it with the authors' code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import MimiConfig, MimiModel

from lab.releases.random_qwen3_codec import make_qwen3_codec, record_of, write_qwen3_codec
from stretto.codecs.memory import num_kept
from stretto.codecs.qwen3_12hz.codec import NOT_SERVED, Qwen3Codec, load
from stretto.codecs.qwen3_12hz.decoder import Decoder, Qwen3CodecConfig
from stretto.codecs.rotary_attention import visible
from stretto.testing.codec_streams import chunks_of, largest, random_codes, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite, OnGpu
from stretto.testing.releases import edited
from tests.codecs.kernels.on_host import SHAPE, small_decoder

pytestmark = pytest.mark.usefixtures("one_thread")
UNREAD = {
    "attention_bias",
    "attention_dropout",
    "encode_downsample_rate",
    "hidden_act",
    "layer_scale_initial_scale",
    "max_position_embeddings",
    "num_semantic_quantizers",
    "semantic_codebook_size",
}


@torch.inference_mode()
def encoded(codec: Qwen3Codec, pcm: np.ndarray) -> np.ndarray:
    """Encode a recording with transformers' Mimi."""
    dtype = next(codec.parameters()).dtype
    mimi = MimiModel(MimiConfig.from_dict(record_of("narrow")["encoder_config"])).eval().to(dtype)
    assert not mimi.load_state_dict(codec.encoder.state_dict(), strict=False).unexpected_keys
    samples = torch.from_numpy(pcm).to(dtype)[None, None]
    return mimi.encode(samples, num_quantizers=codec.spec.num_codebooks).audio_codes[0].numpy()


def smallest_codec() -> Qwen3Codec:
    """Return a codec of 12 samples a frame with every layer of the decoder."""
    encoder = MimiConfig(hidden_size=8, num_filters=1, num_hidden_layers=0, codebook_size=16, codebook_dim=8)
    codec = Qwen3Codec(Qwen3CodecConfig(SHAPE, encoder, sample_rate=150)).eval().requires_grad_(False)
    codec.decoder = small_decoder()
    return codec


class TestQwen3Codec(CodecSuite):
    case = CodecCase(
        name="qwen3_12hz",
        write=write_qwen3_codec,
        spec={
            "sample_rate": 24_000,
            "samples_per_frame": 1920,
            "num_codebooks": 16,
            "codebook_size": 64,
            "left_frames": 0,
            "right_frames": 0,
            "start_frames": 0,
            "tail_samples": 0,
        },
        encoded=encoded,
        num_frames=90,
        positions=(0, 5, 80),
        unneeded_tensors=NOT_SERVED,
        refused_configs=(
            ({"model_type": "mimi"}, "model_type must be qwen3_tts_tokenizer_12hz, got 'mimi'"),
            ({"decoder_config": {}}, "decoder_config lacks hidden_size"),
            ({"decoder_config.sliding_window": True}, "decoder_config.sliding_window must be positive, got True"),
            ({"decoder_config.upsample_rates": [8, 5, 4, -3]}, "decoder_config.upsample_rates must be positive"),
            ({"decoder_config.upsample_rates": []}, "decoder_config.upsample_rates must be positive, got ()"),
            ({"decoder_config.rope_theta": "10000"}, "decoder_config.rope_theta must be positive, got '10000'"),
            ({"decoder_config.upsample_rates": "8543"}, "decoder_config.upsample_rates must be positive"),
            ({"decoder_config.hidden_act": "relu"}, "'hidden_act': 'relu'"),
            ({"decoder_config.head_dim": 3}, "head_dim must be a multiple of 2, got 3"),
            ({"decoder_config.num_quantizers": 1}, "num_quantizers must be > 1, got 1"),
            ({"decoder_config.num_key_value_heads": 3}, "num_attention_heads must be a multiple of 3, got 16"),
            ({"decoder_config.upsample_rates": [8, 5, 4, 4]}, "upsampling_ratios is 1920 instead of 2560"),
            ({"encoder_config.codebook_size": 32}, "encoder_config.codebook_size is 32 instead of 64"),
            ({"encoder_valid_num_quantizers": 8}, "encoder_valid_num_quantizers is 8 instead of 16"),
            ({"output_sample_rate": 16_000}, "input_sample_rate is 24000 instead of 16000"),
        ),
        on_gpu=OnGpu(
            smallest_codec, {"product": 1 + 1 + (2 + 4) + 3 + 2 * 8, "depthwise": 1, "attend": 1}, num_others=3
        ),
    )

    @pytest.mark.parametrize("name", [*record_of("narrow"), *record_of("narrow")["decoder_config"]])
    def test_missing_config_field_is_refused_unless_unused(self, copied: Path, name: str) -> None:
        with edited(copied / "config.json") as record:
            (record if name in record else record["decoder_config"]).pop(name)
        if name in UNREAD:
            load(copied)
        else:
            problem = "must be" if name == "model_type" else "missing"
            self.assert_refused(copied, f"{name} {problem}" if name in record_of("narrow") else f"lacks {name}")

    def test_codebooks_that_are_left_out_count_as_zeros(self) -> None:
        codec = make_qwen3_codec("narrow")
        full = make_qwen3_codec("narrow")
        codec.spec = codec.spec.with_codebooks(2)
        for book in full.decoder.quantizer.rvq_rest.books[1:]:
            book.embedding_sum.zero_()
            book.join()
        codes = random_codes(codec, 1, 6)
        filled = torch.cat([codes, codes.new_zeros(1, 14, 6)], 1)
        assert largest(stream(codec, codes, chunks_of(2, 6)) - stream(full, filled, [6])) <= 2e-5


def sizes(width: str) -> tuple[dict[str, int], int]:
    """Return the number of parameters of each part of the decoder, and the size of its state per utterance."""
    with torch.device("meta"):
        decoder = Decoder(Qwen3CodecConfig.from_record(record_of(width)).decoder)
    parts = {name: sum(each.numel() for each in part.parameters()) for name, part in decoder.named_children()}
    return parts, num_kept(decoder)


def test_qwen3_codec_proportions_match_the_published_ones() -> None:
    (wide, kept), (small, small_kept) = sizes("wide"), sizes("small")
    assert sum(wide.values()) + 2 * 512 * 256 == 114_323_137  # in the release, with two projections that are not read
    assert 8 * 2 * 71 * 1024 < kept < 1.13 * 8 * 2 * 71 * 1024
    assert kept == 8 * small_kept
    for part in ("pre_conv", "pre_transformer", "upsample", "decoder"):
        assert 58 < wide[part] / small[part] <= 64


def test_attention_mask_is_a_causal_window() -> None:
    seen = visible(torch.tensor([0, 2, 100]), 3, before=71)
    for row, first in enumerate((0, 2, 100)):
        for query in range(3):
            held = {key - 71 + first for key in seen[row, 0, query].nonzero().flatten().tolist()}
            here = first + query
            assert held == set(range(max(0, here - 71), here + 1))
