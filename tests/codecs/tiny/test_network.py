import pytest
import torch

from stretto.codecs.tiny.codec import Trunk


@pytest.mark.parametrize(("blocks", "lookahead"), [(1, 0), (3, 2), (4, 4)])
def test_trunk_receptive_field_matches_its_declared_context(blocks: int, lookahead: int) -> None:
    torch.manual_seed(0)
    trunk = Trunk(5, 8, 3, blocks, lookahead).double()
    features = torch.randn(1, 70, 5, dtype=torch.double, requires_grad=True)
    trunk(features)[0, 40].sum().backward()
    touched = torch.nonzero(features.grad[0].abs().sum(1))[:, 0]
    assert (touched[0], touched[-1]) == (40 - trunk.left, 40 + trunk.lookahead)


def test_more_lookahead_than_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lookahead must be in \[0, 2\]"):
        Trunk(5, 8, 3, 2, 3)
