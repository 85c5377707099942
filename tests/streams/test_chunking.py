"""Chunks begin small, double, and stay at their steady size."""

import pytest

from python_backend.streams.chunking import ChunkPolicy


def test_sizes_double_up_to_the_steady_one() -> None:
    policy = ChunkPolicy(4, 25)
    assert [policy.size(index) for index in range(6)] == [4, 8, 16, 25, 25, 25]
    assert policy.size(10_000) == 25


@pytest.mark.parametrize(("first", "steady"), [(0, 5), (6, 5), (-1, 5)])
def test_a_policy_that_makes_no_sense_is_refused(first: int, steady: int) -> None:
    with pytest.raises(ValueError, match="first <= steady"):
        ChunkPolicy(first, steady)
