"""Host copy of the replies' segment state, which lets a step skip operations that no row needs."""

from collections import deque

import numpy as np
import torch

from stretto.engine.worker.arrays import Arrays
from stretto.engine.worker.slots import STATE, SlotTables

UNKNOWN = -1


class HostReadback:
    """Segment state on the CPU: the table itself."""

    is_exact = True

    def __init__(self, tables: SlotTables):
        self._audio_start = tables.state.numpy()[:, STATE["audio_start"]]

    def audio_starts(self) -> np.ndarray:
        """Return the first audio position of every slot's reply, [R], negative while unknown."""
        return self._audio_start

    def place(self, slot: int, audio_start: int) -> None:
        """Do nothing: the table holds the position."""

    def publish(self) -> None:
        """Do nothing: the table is up to date."""


class DeviceReadback:
    """Segment state on a GPU: asynchronous copies of the table, each read `lag` steps later.

    `lag` is the number of steps that may be in flight. When a step is launched, the one `lag` steps before has ended,
    because its output has been used. Nothing waits, and all ranks of a tensor-parallel group have the same knowledge at
    the same step. Late knowledge stays valid, because a segment never changes from audio back to text.
    """

    is_exact = False

    def __init__(self, tables: SlotTables, lag: int):
        self._state, self._lag = tables.state, lag
        num_slots = len(tables.state)
        self._known = np.full(num_slots, UNKNOWN, np.int64)
        self._tenant = np.zeros(num_slots, np.int64)  # number of replies that each slot has held
        self._step = 0
        self._copies: deque[_Copy] = deque()
        self._spare = [_Copy(num_slots) for _ in range(lag + 1)]

    def audio_starts(self) -> np.ndarray:
        """Return the positions as of `lag` steps ago, [R]; call once per step."""
        self._step += 1
        while self._copies and self._copies[0].step <= self._step - self._lag:
            copy = self._copies.popleft()
            copy.event.synchronize()
            is_same = copy.tenant == self._tenant
            self._known[is_same] = np.maximum(self._known, copy.audio_start)[is_same]
            self._spare.append(copy)
        return self._known

    def place(self, slot: int, audio_start: int) -> None:
        """Record the position of the reply that `slot` is filled with."""
        self._tenant[slot] += 1
        self._known[slot] = audio_start

    def publish(self) -> None:
        """Start a copy of the table after the launched step; may be skipped if no text can have ended."""
        copy = self._spare.pop()
        copy.step = self._step
        copy.tensor.copy_(self._state[:, STATE["audio_start"]], non_blocking=True)
        copy.event.record()
        copy.tenant[:] = self._tenant
        self._copies.append(copy)


class _Copy:
    """Column `audio_start` [R] in pinned memory, with the tenants and the step it belongs to, and a CUDA event."""

    def __init__(self, num_slots: int):
        self.tensor = torch.zeros(num_slots, dtype=torch.int64, pin_memory=torch.cuda.is_available())
        self.audio_start = self.tensor.numpy()
        self.tenant = np.zeros(num_slots, np.int64)
        self.step = 0
        self.event = torch.cuda.Event()


def readback_of(tables: SlotTables, arrays: Arrays, lag: int) -> HostReadback | DeviceReadback:
    """Return the readback of `tables` for at most `lag` steps in flight."""
    return HostReadback(tables) if arrays.xp is np else DeviceReadback(tables, lag)
