import torch
from transformers import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiTransformerModel

from stretto.codecs.mimi_encoder import RingTransformer

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
        rings, outputs, at = torch.zeros(2, *transformer.shape, dtype=torch.float64), [], 0
        for size in sizes:
            outputs.append(transformer.advance(steps[:, at : at + size], torch.full((2,), at), rings))
            at += size
        assert (torch.cat(outputs, 1) - whole).abs().max() < 1e-12
