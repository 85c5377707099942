"""Unconditional prompts: the frame of the prompt is kept, and null ids replace its content."""

import numpy as np
import pytest

from stretto.engine.scheduling.request_state import unconditional_rows
from stretto.family.base import UnconditionalContext


def test_unconditional_rows_hide_the_middle_of_the_context() -> None:
    context = UnconditionalContext(null_id=9, keep_first=2, keep_last=1)
    rows = np.arange(1, 19).reshape(6, 3)
    hidden = unconditional_rows(rows, context, pad_id=0)
    assert hidden.tolist() == [[1, 2, 3], [4, 5, 6], [9, 0, 0], [9, 0, 0], [9, 0, 0], [16, 17, 18]]
    assert rows[2, 0] == 7, "the conditional rows are left alone"


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_fully_kept_unconditional_context_is_unchanged(num_rows: int) -> None:
    context = UnconditionalContext(null_id=9, keep_first=2, keep_last=1)
    rows = np.arange(num_rows * 2).reshape(num_rows, 2)
    assert np.array_equal(unconditional_rows(rows, context, pad_id=0), rows)
