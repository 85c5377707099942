"""What the host knows of where replies stand, so that a step leaves out what no row needs."""

from collections import deque

import numpy as np
import torch

from stretto.engine.worker.arrays import Arrays
from stretto.engine.worker.slots import STATE, SlotTables

UNKNOWN = -1


class HostReadback:
    """On the CPU: the table itself."""

    is_exact = True

    def __init__(self, tables: SlotTables):
        self._audio_start = tables.state.numpy()[:, STATE["audio_start"]]

    def audio_starts(self) -> np.ndarray:
        """The first audio position of every slot's reply, negative while it is not known, [R]."""
        return self._audio_start

    def place(self, slot: int, audio_start: int) -> None:
        """Note where the reply stands that `slot` is filled with; the table knows."""

    def publish(self) -> None:
        """Let the host know of the step just launched; the table does."""


class DeviceReadback:
    """Elsewhere: copies of the table, each read `lag` steps after it was made.

    lag: how many steps may be in flight. When a step is launched, the one `lag` before it has ended, for its output
    has been used; so nothing waits, and all ranks of a tensor-parallel group know the same at the same step. What is
    known late is known: a segment that has begun to be audio never turns back into text.
    """

    is_exact = False

    def __init__(self, tables: SlotTables, lag: int):
        self._state, self._lag = tables.state, lag
        num_slots = len(tables.state)
        self._known = np.full(num_slots, UNKNOWN, np.int64)
        self._tenant = np.zeros(num_slots, np.int64)  # counts the replies that each slot has held
        self._step = 0
        self._copies: deque[_Copy] = deque()
        self._spare = [_Copy(num_slots) for _ in range(lag + 1)]

    def audio_starts(self) -> np.ndarray:
        """As of `lag` steps ago, [R]; asked for once in every step."""
        self._step += 1
        while self._copies and self._copies[0].step <= self._step - self._lag:
            copy = self._copies.popleft()
            copy.event.synchronize()
            is_same = copy.tenant == self._tenant
            self._known[is_same] = np.maximum(self._known, copy.audio_start)[is_same]
            self._spare.append(copy)
        return self._known

    def place(self, slot: int, audio_start: int) -> None:
        """Note where the reply stands that `slot` is filled with."""
        self._tenant[slot] += 1
        self._known[slot] = audio_start

    def publish(self) -> None:
        """Copy what the step just launched will leave behind; steps in which no text can have ended may be left out."""
        copy = self._spare.pop()
        copy.step = self._step
        copy.tensor.copy_(self._state[:, STATE["audio_start"]], non_blocking=True)
        copy.event.record()
        copy.tenant[:] = self._tenant
        self._copies.append(copy)


class _Copy:
    """The column `audio_start` [R] in pinned memory, whose replies they are, of which step, and when it has arrived."""

    def __init__(self, num_slots: int):
        self.tensor = torch.zeros(num_slots, dtype=torch.int64, pin_memory=torch.cuda.is_available())
        self.audio_start = self.tensor.numpy()
        self.tenant = np.zeros(num_slots, np.int64)
        self.step = 0
        self.event = torch.cuda.Event()


def readback_of(tables: SlotTables, arrays: Arrays, lag: int) -> HostReadback | DeviceReadback:
    """What the host can know of `tables` while `lag` steps may be in flight."""
    return HostReadback(tables) if arrays.xp is np else DeviceReadback(tables, lag)
