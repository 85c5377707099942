"""Rows of a table of codec states."""

import gc

import pytest
import torch

from stretto.decoding.states import INITIAL, NUM_RESERVED, UNUSED, StateTable, row_numbers
from stretto.errors import Overloaded


def test_row_is_free_once_nothing_refers_to_it() -> None:
    table = StateTable(torch.full((1, 3), 2.0), 2)
    session = table.take(1)[0]
    batch = [session]
    cache = session
    taken = session.number
    (other,) = table.take(1)
    assert {taken, other.number} == {NUM_RESERVED, NUM_RESERVED + 1}
    del session, batch
    with pytest.raises(Overloaded, match="all 2 codec states are in use"):
        table.take(1)
    del cache
    gc.collect()  # the exception referred to it
    assert table.take(1)[0].number == taken


def test_initial_state_is_never_written() -> None:
    table = StateTable(torch.full((1, 3), 2.0), 2)
    assert table.initial.number == INITIAL
    assert table.initial.nbytes == 12
    assert table.states[INITIAL].tolist() == [2.0] * 3
    rows = table.take(2)
    assert row_numbers([table.initial], rows[:1], 2).tolist() == [[INITIAL, INITIAL], [rows[0].number, UNUSED]]
