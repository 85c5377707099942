"""Rows and marks come apart as they were put together."""

from stretto.engine.request.wire import GUIDANCE_OFF, GUIDANCE_ON, read_rows


def test_rows_without_marks_say_nothing_of_guidance() -> None:
    assert list(read_rows([1, 2, 3, 4], 2)) == [([1, 2], None), ([3, 4], None)]


def test_a_mark_belongs_to_the_row_behind_it() -> None:
    ids = [GUIDANCE_OFF, 1, 2, 3, 4, GUIDANCE_ON, 5, 6]
    assert list(read_rows(ids, 2)) == [([1, 2], False), ([3, 4], None), ([5, 6], True)]
