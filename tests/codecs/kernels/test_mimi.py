"""Mimi on a GPU, in Triton's interpreter: the samples of any chunk and batch, states in rows, and launches."""

import torch
from torch import Tensor
from transformers import MimiConfig, MimiModel
from transformers.models.mimi.modeling_mimi import MimiEuclideanCodebook

from benchmarks.decoder_memory import Launches
from stretto.codecs.base import Window
from stretto.codecs.mimi import MimiCodec
from tests.codecs.kernels.on_host import kernels_on_host
from tests.codecs.streaming import decode_words, largest

# Every kind of layer of Mimi's, and as little arithmetic as possible: 12 samples a frame.
CONFIG = {
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


def small_codec() -> MimiCodec:
    torch.manual_seed(0)
    model = MimiModel(MimiConfig(**CONFIG)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)
    for module in model.modules():
        if isinstance(module, MimiEuclideanCodebook):
            module.embed_sum.normal_()
    model.decoder.layers[-1].conv.weight *= 0.1
    return MimiCodec(model)


def random_codes(num_books: int) -> Tensor:
    return torch.randint(16, (2, num_books, 4), generator=torch.Generator().manual_seed(1))


def test_samples_have_the_same_bits_in_any_chunk_and_batch() -> None:
    """With all codebooks, with fewer, and with the semantic one alone."""
    for num_books in (3, 2, 1):
        codes = random_codes(num_books)
        expected = small_codec().model.decode(codes).audio_values[:, 0].clamp(-1, 1)
        codec = small_codec()
        with kernels_on_host():
            whole = decode_words(codec, codes, [4])
            parts = decode_words(codec, codes[1:], [1, 2, 1])
        assert largest(whole - expected) <= 1e-5
        assert whole.abs().median() < 0.9
        assert torch.equal(parts, whole[1:])


def test_states_are_rows_of_a_table() -> None:
    codec = small_codec()
    codes = random_codes(3)
    table = torch.randn(5, codec.initial_state(1).shape[1], generator=torch.Generator().manual_seed(2))
    table[0] = 0
    untouched = table[0].clone()
    parts = list[Tensor]()
    with kernels_on_host():
        whole = decode_words(codec, codes, [4])
        for begin, end, rows in [(0, 1, [[0, 0], [3, 2]]), (1, 4, [[3, 2], [1, 4]])]:
            window = Window(codes[:, :, begin:end], 0, 0, torch.full((2,), begin), table, torch.tensor(rows))
            pcm, after = codec.decode(window)
            assert after is table
            parts.append(pcm)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(table[0], untouched)


def test_launches_on_a_gpu() -> None:
    """A layer of the transformer is five launches, every other layer one with activations and residuals around it."""
    codec = small_codec().to("meta")
    with torch.device("meta"):
        window = Window(torch.zeros(1, 3, 2, dtype=torch.int64), 0, 0, torch.zeros(1), codec.initial_state(1))
        codec.decode(window)
        with Launches() as launches:
            codec.decode(window)
    num_convolutions = 1 + 2 * 3 + 1
    assert launches.names.count("product") == 1 + 2 * 4 + num_convolutions
    assert launches.names.count("depthwise") == 1
    assert launches.names.count("attend") == 2
    num_others = 4  # sums of entries, positions of the steps, rotations and limits
    assert len(launches.names) == 1 + 2 * 5 + num_convolutions + 1 + num_others
