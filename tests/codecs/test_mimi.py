"""Mimi against transformers, whose own decode with past keys and values is not exact."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import MimiConfig, MimiModel
from transformers.models.mimi.modeling_mimi import MimiEuclideanCodebook, MimiTransformerModel

from stretto.codecs.mimi import MimiCodec
from stretto.codecs.mimi_encoder import MimiEncoder, RingTransformer
from stretto.testing.codec_streams import largest, random_pcm, stream
from stretto.testing.codec_suite import CodecCase, CodecSuite, OnGpu
from stretto.testing.fake_gpu import kernels_on_host

# The published strides, kernels and paddings; a window that the tests can outlast.
SMALL = {
    "hidden_size": 32,
    "num_filters": 2,
    "codebook_size": 32,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "upsample_groups": 32,
    "layer_scale_initial_scale": 0.5,
    "sliding_window": 20,
}

# Every kind of layer of Mimi's, and as little arithmetic as possible: 12 samples a frame.
SMALLEST = {
    "frame_rate": 4,
    "sampling_rate": 48,
    "upsampling_ratios": [3, 2],
    "hidden_size": 16,
    "num_filters": 8,
    "codebook_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "upsample_groups": 16,
    "layer_scale_initial_scale": 0.5,
    "sliding_window": 3,
}


def random_model(sizes: dict[str, object], gain: float) -> MimiModel:
    """Return a model with random weights; with a gain, it is loud enough for errors to show, and not clipped."""
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**sizes)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)
    for module in model.modules():
        if isinstance(module, MimiEuclideanCodebook):
            module.embed_sum.normal_()
    last = model.decoder.layers[-1].conv
    last.bias.zero_()
    last.weight *= gain
    return model


def write(folder: Path) -> Path:
    random_model(SMALL, 0.0366).save_pretrained(folder)
    return folder


@torch.inference_mode()
def decoded(codec: MimiCodec, codes: Tensor) -> Tensor:
    return codec.model.decode(codes).audio_values[:, 0].clamp(-1, 1)


@torch.inference_mode()
def encoded(codec: MimiCodec, pcm: np.ndarray) -> np.ndarray:
    published = random_model(SMALL, 0.0366).to(next(codec.parameters()).dtype)
    samples = torch.from_numpy(pcm).to(next(codec.parameters()))
    return published.encode(samples[None, None], num_quantizers=codec.spec.num_codebooks).audio_codes[0].numpy()


def smallest_codec() -> MimiCodec:
    return MimiCodec(random_model(SMALLEST, 0.1))


class TestMimi(CodecSuite):
    case = CodecCase(
        name="mimi",
        write=write,
        spec={
            "sample_rate": 24_000,
            "samples_per_frame": 1920,
            "frame_rate": 12.5,
            "num_codebooks": 4,
            "codebook_size": 32,
            "left_frames": 0,
            "right_frames": 0,
            "start_frames": 0,
        },
        decoded=decoded,
        encoded=encoded,
        refused_configs=(
            ({"pad_mode": "replicate"}, "pad_mode"),
            ({"use_causal_conv": False}, "use_causal_conv"),
            ({"use_conv_shortcut": True}, "use_conv_shortcut"),
            ({"hidden_act": "relu"}, "hidden_act"),
            ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_parameters"),
        ),
        on_gpu=OnGpu(smallest_codec, {"product": 1 + 2 * 4 + 8, "depthwise": 1, "attend": 2}, num_others=4),
        stream_encoder=MimiEncoder,
    )

    def test_kernels_use_fewer_codebooks(self) -> None:
        for num_codebooks in (2, 1):
            codes = torch.randint(16, (2, num_codebooks, 4), generator=torch.Generator().manual_seed(1))
            expected = decoded(smallest_codec(), codes)
            codec = smallest_codec()
            codec.spec = codec.spec.with_codebooks(num_codebooks)
            with kernels_on_host():
                assert largest(stream(codec, codes, [4]) - expected) <= 1e-5

    def test_state_has_the_keys_of_the_window_and_the_last_inputs(self, exact: MimiCodec) -> None:
        """Keys and values of 19 steps in three layers of two heads."""
        convolutions = 32 * 6 + (32 + 16 + 8 + 4) + (16 + 8 + 4 + 2) * 2 + 2 * 2
        assert exact.initial_state(1).shape == (1, 32 + 3 * 2 * 2 * 19 * 8 + convolutions)

    def test_whole_recordings_are_padded_with_silence(self, exact: MimiCodec) -> None:
        pcm = random_pcm(5000)
        padded = np.pad(pcm, (0, 3 * 1920 - 5000))
        assert (MimiEncoder(exact).encode_all(pcm) == exact.encode(padded)).all()
        assert MimiEncoder(exact).encode_all(pcm[:0]).shape == (4, 0)


WINDOW = 6


def make_transformer() -> MimiTransformerModel:
    torch.manual_seed(0)
    config = MimiConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        num_hidden_layers=2,
        sliding_window=WINDOW,
        layer_scale_initial_scale=0.5,
    )
    config._attn_implementation = "sdpa"
    return MimiTransformerModel(config).double().eval().requires_grad_(False)


def test_ring_cache_queries_see_their_attention_window() -> None:
    """Compare with a list of the written steps."""
    transformer = RingTransformer(make_transformer(), block=3)
    held = [-1] * transformer.size
    for start, size in ((0, 3), (3, 1), (4, 3), (7, 2), (9, 3), (12, 3), (15, 1)):
        positions = list(range(start, start + size))
        for position in positions:
            held[position % transformer.size] = position
        expected = [[position >= 0 and query - WINDOW < position <= query for position in held] for query in positions]
        assert transformer.visible(torch.tensor([positions]))[0, 0].tolist() == expected


def test_mimi_transformer_blocks_match_one_pass_of_transformers() -> None:
    model = make_transformer()
    steps = torch.randn(2, 40, 16, dtype=torch.float64)
    whole = model(steps, use_cache=False).last_hidden_state
    for sizes in ([1] * 40, [7, 1, 13, 19], [40]):
        transformer = RingTransformer(model, block=4)
        rings = torch.zeros(2, *transformer.shape, dtype=torch.float64)
        outputs = []
        at = 0
        for size in sizes:
            outputs.append(transformer.advance(steps[:, at : at + size], torch.full((2,), at), rings))
            at += size
        assert (torch.cat(outputs, 1) - whole).abs().max() < 1e-12
