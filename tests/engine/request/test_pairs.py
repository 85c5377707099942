"""Pairs by name and by number."""

from stretto.engine.protocol import max_blocks, num_guided, partner_of


def test_each_half_names_the_other() -> None:
    assert partner_of("r1") == "r1#unconditional"
    assert partner_of("r1#unconditional") == "r1"


def test_guided_frames_are_those_between_two_turns() -> None:
    assert num_guided([], 7) == 7
    assert num_guided([3], 7) == 3
    assert num_guided([3, 5], 7) == 5
    assert num_guided([3, 9], 7) == 3, "a turn behind the last frame"


def test_a_pair_needs_the_blocks_of_two() -> None:
    assert max_blocks(33, 32, is_guided=False) == 2
    assert max_blocks(33, 32, is_guided=True) == 4
