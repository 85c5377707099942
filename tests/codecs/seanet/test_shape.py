import pytest
import torch

from stretto.codecs.seanet import Context, SeanetShape, SeanetWidths, make_decoder

SHAPES = [
    SeanetShape(ratios=(8, 5, 4, 2), residual_kernel=7, num_residual_layers=3),  # OpusLM
    SeanetShape(ratios=(8, 5, 4, 4)),  # Musicgen
    SeanetShape(ratios=(2, 3), last_kernel=3, residual_kernel=5, num_residual_layers=2, dilation_base=3),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.ratios))
def test_tail_context_formula_matches_a_perturbation(shape: SeanetShape) -> None:
    torch.manual_seed(0)
    tail = make_decoder(shape, SeanetWidths(base=2, latent=4)).double()[2:]
    frames, at = 41, 20
    hidden = torch.randn(1, 2 << len(shape.ratios), frames, dtype=torch.float64)
    changed = hidden.clone()
    changed[:, :, at] += 1
    with torch.inference_mode():
        heard = (tail(hidden) != tail(changed)).reshape(frames, shape.hop).any(1).nonzero().flatten().tolist()
    assert heard == list(range(at - shape.tail.right, at + shape.tail.left + 1))


def test_seanet_contexts_of_the_published_codecs() -> None:
    assert (SHAPES[0].head, SHAPES[0].tail) == (Context(3, 3), Context(4, 4))
    assert (SHAPES[1].head, SHAPES[1].tail) == (Context(3, 3), Context(1, 1))
