"""Rows and their marks come apart as they were put together."""

import pytest

from stretto.engine.protocol import GUIDANCE_OFF, GUIDANCE_ON, NO_CHANGE, read_rows


def test_rows_come_with_their_marks() -> None:
    ids = [NO_CHANGE, 1, 2, GUIDANCE_OFF, 3, 4, GUIDANCE_ON, 5, 6]
    assert read_rows(ids, 2).tolist() == [[NO_CHANGE, 1, 2], [GUIDANCE_OFF, 3, 4], [GUIDANCE_ON, 5, 6]]


def test_the_last_message_may_bring_the_trailer_alone() -> None:
    assert read_rows([], 2).shape == (0, 3)


def test_half_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="reshape"):
        read_rows([NO_CHANGE, 1, 2, NO_CHANGE], 2)
