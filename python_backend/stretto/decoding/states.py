"""Codec states of all utterances on a GPU: rows of one table, which kernels read and write by their numbers.

A window reads one row and writes another one, because programs of a launch still read a state while others write the
next one. So the state in a row never changes while anything refers to it: a session, a batch on the device, or the
cache of voice references. Afterwards the row is free, and the next window of any utterance may overwrite all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stretto.codecs.base import Codec, Window
from stretto.errors import Overloaded

INITIAL = 0  # row of the state before any frame, which is never written
UNUSED = 1  # row that windows without an utterance write, and that nothing reads
NUM_RESERVED = 2
Decode = Callable[[Window], tuple[Tensor, Tensor]]


class StateRow:
    """Row of a table, which is free once nothing refers to this object."""

    def __init__(self, number: int, nbytes: int, free: list[int]) -> None:
        self.number = number
        self.nbytes = nbytes
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.number)


State = Tensor | StateRow  # state of an utterance: [1, D], or a row of a `StateTable`


class StateTable:
    """Table of codec states [NUM_RESERVED + num_rows, D]. Only one thread may take rows; any thread may drop them.

    Args:
        initial: State before any frame, [1, D]. The attribute `initial` is the row that contains it.
    """

    def __init__(self, initial: Tensor, num_rows: int) -> None:
        self.states = initial.new_empty(NUM_RESERVED + num_rows, initial.shape[1])
        self.states[:NUM_RESERVED] = initial
        self._free = list(range(NUM_RESERVED, len(self.states)))[::-1]
        self.initial = StateRow(INITIAL, initial.nbytes, [])

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, number: int) -> list[StateRow]:
        """Return free rows, which still contain earlier states; raise Overloaded if there are too few."""
        if number > len(self._free):
            raise Overloaded(f"all {len(self.states) - NUM_RESERVED} codec states are in use")
        return [StateRow(self._free.pop(), self.initial.nbytes, self._free) for _ in range(number)]


def row_numbers(before: Sequence[StateRow], after: Sequence[StateRow], num_windows: int) -> Tensor:
    """Return `Window.rows` for a batch that is padded to `num_windows` windows, int64 [2, num_windows]."""
    num_unused = num_windows - len(before)
    reads = [row.number for row in before] + [INITIAL] * num_unused
    writes = [row.number for row in after] + [UNUSED] * num_unused
    return torch.tensor([reads, writes])


def decode_in_rows(codec: Codec) -> Decode:
    """Return a codec's `decode` for windows with `rows`; copy states if the codec does not use rows itself."""

    def decode(window: Window) -> tuple[Tensor, Tensor]:
        if window.rows is None:
            return codec.decode(window)
        rows = window.rows[:, : len(window.codes)]
        table = window.state
        if codec.spec.reads_rows:
            return codec.decode(replace(window, rows=rows))
        before = table.index_select(0, rows[0])
        pcm, after = codec.decode(replace(window, state=before, rows=None))
        if table.shape[1]:
            table.index_copy_(0, rows[1], after)
        return pcm, table

    return decode
