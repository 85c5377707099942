"""The unconditional half sees the frame of the prompt, and null ids where it stood."""

import numpy as np
import pytest

from stretto.engine.scheduling.unconditional import unconditional_rows
from stretto.families.base import UnconditionalContext


def test_the_middle_of_the_context_is_hidden() -> None:
    context = UnconditionalContext(null_id=9, keep_first=2, keep_last=1)
    rows = np.arange(1, 19).reshape(6, 3)
    hidden = unconditional_rows(rows, context, pad_id=0)
    assert hidden.tolist() == [[1, 2, 3], [4, 5, 6], [9, 0, 0], [9, 0, 0], [9, 0, 0], [16, 17, 18]]
    assert rows[2, 0] == 7, "the conditional rows are left alone"


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_a_context_that_is_all_kept_is_not_hidden(num_rows: int) -> None:
    context = UnconditionalContext(null_id=9, keep_first=2, keep_last=1)
    rows = np.arange(num_rows * 2).reshape(num_rows, 2)
    assert np.array_equal(unconditional_rows(rows, context, pad_id=0), rows)
