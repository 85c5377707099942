"""The history holds what was pushed, however long it grows and whatever was taken back."""

import numpy as np
import pytest

from stretto.engine.scheduling.history import RowHistory


def test_rows_come_back_after_growing_and_truncating() -> None:
    prompt = np.arange(6, dtype=np.int32).reshape(3, 2)
    history = RowHistory(prompt)
    for index in range(200):
        history.put(3 + index, [index, -index])
    history.put(103, [7, 7])
    rows = history.rows(0, 104)
    assert np.array_equal(rows[:3], prompt)
    assert rows[3:103, 0].tolist() == list(range(100))
    assert rows[103].tolist() == [7, 7]
    assert history.num_rows == 104
    assert prompt[0, 0] == 0


def test_the_prompt_cannot_be_taken_back() -> None:
    with pytest.raises(AssertionError):
        RowHistory(np.zeros((3, 2), np.int32)).truncate(2)
