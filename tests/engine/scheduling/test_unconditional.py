"""Unconditional prompts: the frame of the prompt is kept, and null ids replace its content."""

import numpy as np
import pytest

from stretto.engine.scheduling.request_table import unconditional_rows
from stretto.families.base import UnconditionalContext


def test_the_middle_of_the_context_is_hidden() -> None:
    context = UnconditionalContext(null_id=9, keep_first=2, keep_last=1)
    rows = np.arange(1, 19).reshape(6, 3)
    hidden = unconditional_rows(rows, context, pad_id=0)
    assert hidden.tolist() == [[1, 2, 3], [4, 5, 6], [9, 0, 0], [9, 0, 0], [9, 0, 0], [16, 17, 18]]
    assert rows[2, 0] == 7, "the conditional rows are left alone"


def test_streams_that_are_kept_are_read_in_the_middle_too() -> None:
    context = UnconditionalContext(null_id=9, keep_first=1, keep_last=1, kept_streams=(2,))
    hidden = unconditional_rows(np.arange(1, 13).reshape(4, 3), context, pad_id=0)
    assert hidden.tolist() == [[1, 2, 3], [9, 0, 6], [9, 0, 9], [10, 11, 12]]


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_a_context_that_is_all_kept_is_not_hidden(num_rows: int) -> None:
    context = UnconditionalContext(null_id=9, keep_first=2, keep_last=1)
    rows = np.arange(num_rows * 2).reshape(num_rows, 2)
    assert np.array_equal(unconditional_rows(rows, context, pad_id=0), rows)
