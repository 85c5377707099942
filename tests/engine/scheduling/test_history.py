"""Token histories keep pushed rows while they grow and after rows are withdrawn."""

import numpy as np
import pytest

from stretto.engine.scheduling.row_history import RowHistory
from stretto.engine.tracks import Track, rows_of


def test_row_history_survives_growing_and_truncating() -> None:
    prompt = np.arange(6, dtype=np.int32).reshape(3, 2)
    history = RowHistory(prompt)
    for index in range(200):
        history.put(3 + index, [[index, -index]])
    history.put(103, [[7, 7]])
    rows = history.rows(0, 104)
    assert np.array_equal(rows[:3], prompt)
    assert rows[3:103, 0].tolist() == list(range(100))
    assert rows[103].tolist() == [7, 7]
    assert history.num_rows == 104
    assert prompt[0, 0] == 0


def test_multi_row_history_keeps_its_order() -> None:
    history = RowHistory(np.zeros((3, 2), np.int32))
    for index in range(100):
        history.put(history.num_rows, [[index, place] for place in range(1 + index % 4)])
    assert history.num_rows == 3 + 250
    assert history.rows(3, 9).tolist() == [[0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]]
    history.put(8, [[7, 0], [7, 1]])
    assert history.rows(6, 10).tolist() == [[2, 0], [2, 1], [7, 0], [7, 1]]


def test_row_history_cannot_be_truncated_into_the_prompt() -> None:
    with pytest.raises(AssertionError):
        RowHistory(np.zeros((3, 2), np.int32)).truncate(2)


def test_text_track_overrides_its_stream_in_the_history() -> None:
    """The text is independent of the rows' own values, and current at each read."""
    track = Track(slice(1, 2), first_row=3, ids=rows_of([7, 8], 1), pad_id=9)
    history = RowHistory(np.zeros((3, 2), np.int32), track)
    history.put(3, [[1, 0], [2, 0], [3, 0], [4, 0]])
    assert history.rows(0, 7)[:, 1].tolist() == [0, 0, 0, 7, 8, 9, 9]
    track.extend([5], is_last=False)
    assert history.rows(4, 7).tolist() == [[2, 8], [3, 5], [4, 9]]
    assert history.rows(6, 7).tolist() == [[4, 9]]
