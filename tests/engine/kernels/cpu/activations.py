"""Check that activations of a row have the same bits in every batch, with any number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.tiers import by_night

__all__ = ["assert_batch_invariant", "num_threads", "random_rows"]
Activation = Callable[[torch.Tensor], torch.Tensor]
NUM_ROWS = 100
# Multiples of 64, of the number of elements in a vector, and of neither; the last rows are divided among threads alone.
WIDTHS = (8, 40, 100, 1000, 1024, 1376, 4096, 4864, 8960, 40_000)


@pytest.fixture(params=[3, *by_night(1, 2, 4, 5, 8)])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random_rows(width: int) -> torch.Tensor:
    return torch.randn(NUM_ROWS, width, generator=torch.Generator().manual_seed(width))


def assert_batch_invariant(activate: Activation) -> None:
    """Assert that rows do not depend on others.

    Torch's own activations do, because the ends of the threads' parts are computed otherwise.
    """
    for width in WIDTHS:
        x = random_rows(width)
        expected = torch.cat([activate(row) for row in x.split(1)])
        assert activate(x).equal(expected), width
        for first, stop in ((0, 2), (0, 17), (31, 64), (1, 100)):
            assert activate(x[first:stop]).equal(expected[first:stop]), (width, first, stop)
