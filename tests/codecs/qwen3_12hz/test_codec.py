"""Equal codes give the same waveform for any chunks; checkpoints that do not fit are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MimiConfig, MimiModel

from lab.releases.random_qwen3_codec import make_qwen3_codec, record_of, write_qwen3_codec
from stretto.codecs.base import Window, load_codec
from stretto.codecs.memory import num_kept
from stretto.codecs.qwen3_12hz.codec import Qwen3Codec, load
from stretto.codecs.qwen3_12hz.decoder import Decoder, Qwen3CodecConfig
from stretto.codecs.rotary_attention import visible
from stretto.errors import CheckpointError
from tests.codecs.streaming import (
    check_codes,
    check_places,
    chunks_of,
    largest,
    random_codes,
    stream,
)
from tests.tiers import by_night

pytestmark = pytest.mark.usefixtures("one_thread")
HOP = 1920


@pytest.fixture(scope="module")
def codec() -> Qwen3Codec:
    return make_qwen3_codec("narrow").double()


def decode(codec: Qwen3Codec, codes: Tensor, first: list[int], state: Tensor) -> tuple[Tensor, Tensor]:
    return codec.decode(Window(codes, 0, 0, torch.tensor(first), state))


def test_qwen3_12hz_codec_needs_no_context_frames(codec: Qwen3Codec) -> None:
    spec = codec.spec
    assert (spec.sample_rate, spec.samples_per_frame, spec.frame_rate) == (24_000, HOP, 12.5)
    assert (spec.num_codebooks, spec.codebook_size) == (16, 64)
    assert (spec.left_frames, spec.right_frames, spec.start_frames, spec.tail_samples) == (0, 0, 0, 0)


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


def test_utterances_at_different_positions_decode_in_one_batch(codec: Qwen3Codec) -> None:
    """The window of 72 frames is empty, partly filled, and exceeded."""
    codes = random_codes(codec, 3, 90)
    check_places(codec, codes, stream(codec, codes, [90]), 1e-12, (0, 5, 80), 7)


def test_attention_mask_is_a_causal_window() -> None:
    seen = visible(torch.tensor([0, 2, 100]), 3, before=71)
    for row, first in enumerate((0, 2, 100)):
        for query in range(3):
            held = {key - 71 + first for key in seen[row, 0, query].nonzero().flatten().tolist()}
            here = first + query
            assert held == set(range(max(0, here - 71), here + 1))


def test_decoding_does_not_modify_the_input_state(codec: Qwen3Codec) -> None:
    codes, state = random_codes(codec, 1, 6), codec.initial_state(1)
    _, after = decode(codec, codes, [0], state)
    assert not state.any()
    assert after.shape == state.shape
    assert after.any()


def test_every_part_of_the_state_affects_the_output(codec: Qwen3Codec) -> None:
    codes = random_codes(codec, 1, 80)
    whole = stream(codec, codes, [80])[:, 76 * HOP :]
    _, state = decode(codec, codes[:, :, :76], [0], codec.initial_state(1))
    assert largest(decode(codec, codes[:, :, 76:], [76], state)[0] - whole) <= 1e-12
    for part in range(16):
        begun, stop = (state.shape[1] * edge // 16 for edge in (part, part + 1))
        poorer = state.clone()
        poorer[:, begun:stop] = 0
        assert largest(decode(codec, codes[:, :, 76:], [76], poorer)[0] - whole) > 1e-6


def test_fewer_codebooks_use_the_first_ones() -> None:
    codec, full = make_qwen3_codec("narrow"), make_qwen3_codec("narrow")
    codec.spec = codec.spec.with_codebooks(2)
    pcm = np.random.default_rng(0).normal(0, 0.2, 9000).astype(np.float32)
    assert np.array_equal(codec.encode(pcm), full.encode(pcm)[:2])
    for book in full.decoder.quantizer.rvq_rest.books[1:]:
        book.embedding_sum.zero_()
        book.join()
    codes = random_codes(codec, 1, 6)
    filled = torch.cat([codes, codes.new_zeros(1, 14, 6)], 1)
    assert largest(stream(codec, codes, chunks_of(2, 6)) - stream(full, filled, [6])) <= 2e-5


@pytest.mark.parametrize("samples", [1, 959, 1921, *by_night(2, 961, 1919, 1920, 9000, 48_017)])
def test_qwen3_12hz_encoding_matches_transformers_mimi(samples: int) -> None:
    codec = make_qwen3_codec("narrow")
    mimi = MimiModel(MimiConfig.from_dict(record_of("narrow")["encoder_config"])).eval()
    assert not mimi.load_state_dict(codec.encoder.state_dict(), strict=False).unexpected_keys
    pcm = np.random.default_rng(samples).normal(0, 0.2, samples).astype(np.float32)
    with torch.inference_mode():
        expected = mimi.encode(torch.from_numpy(pcm)[None, None], num_quantizers=16).audio_codes[0]
    check_codes(codec, pcm, expected)


def test_empty_pcm_encodes_to_zero_frames(codec: Qwen3Codec) -> None:
    assert codec.encode(np.zeros(0, np.float32)).shape == (16, 0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3_codec(tmp_path_factory.mktemp("qwen3_12hz"))


ODD_RECORDS = [
    ({"model_type": "mimi"}, "model_type must be qwen3_tts_tokenizer_12hz, got 'mimi'"),
    ({"decoder_config": {}}, "decoder_config lacks hidden_size"),
    ({"decoder_config": {"sliding_window": True}}, "decoder_config.sliding_window must be positive, got True"),
    ({"decoder_config": {"upsample_rates": [8, 5, 4, -3]}}, "decoder_config.upsample_rates must be positive"),
    ({"decoder_config": {"upsample_rates": []}}, "decoder_config.upsample_rates must be positive, got ()"),
    ({"decoder_config": {"rope_theta": "10000"}}, "decoder_config.rope_theta must be positive, got '10000'"),
    ({"decoder_config": {"upsample_rates": "8543"}}, "decoder_config.upsample_rates must be positive"),
    ({"decoder_config": {"hidden_act": "relu"}}, "'hidden_act': 'relu'"),
    ({"decoder_config": {"head_dim": 3}}, "head_dim must be a multiple of 2, got 3"),
    ({"decoder_config": {"num_quantizers": 1}}, "num_quantizers must be > 1, got 1"),
    ({"decoder_config": {"num_key_value_heads": 3}}, "num_attention_heads must be a multiple of 3, got 16"),
    ({"decoder_config": {"upsample_rates": [8, 5, 4, 4]}}, "encoder_config.upsampling_ratios is 1920 instead of 2560"),
    ({"encoder_config": {"codebook_size": 32}}, "encoder_config.codebook_size is 32 instead of 64"),
    ({"encoder_valid_num_quantizers": 8}, "encoder_valid_num_quantizers is 8 instead of 16"),
    ({"output_sample_rate": 16_000}, "input_sample_rate is 24000 instead of 16000"),
]


@pytest.mark.parametrize(("odd", "said"), ODD_RECORDS, ids=str)
def test_invalid_config_numbers_are_refused(tmp_path: Path, odd: dict, said: str) -> None:
    record = record_of("narrow")
    for name, value in odd.items():
        record[name] = record[name] | value if isinstance(value, dict) and value else value
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path)
    assert said in str(refused.value)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("name", [*record_of("narrow"), *record_of("narrow")["decoder_config"]])
def test_missing_config_number_is_reported_unless_unused(published: Path, tmp_path: Path, name: str) -> None:
    record = record_of("narrow")
    (record if name in record else record["decoder_config"]).pop(name)
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "model.safetensors").symlink_to(published / "model.safetensors")
    if name in UNREAD:
        load(tmp_path)
        return
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path)


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


def test_error_names_mismatched_tensors(published: Path, tmp_path: Path) -> None:
    tensors = load_file(published / "model.safetensors")
    tensors["decoder.stray"] = torch.zeros(1)
    tensors["decoder.pre_conv.conv.bias"] = torch.zeros(1)
    del tensors["encoder.downsample.conv.weight"]
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "config.json").write_bytes((published / "config.json").read_bytes())
    save_file(tensors, tmp_path / "codec" / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        load_codec("qwen3_12hz", tmp_path)
    assert "missing: encoder.downsample.conv.weight" in str(refused.value)
    assert "unknown: decoder.stray" in str(refused.value)
    assert "wrong shape: decoder.pre_conv.conv.bias" in str(refused.value)


def test_invalid_safetensors_file_is_refused(published: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((published / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(tmp_path)
