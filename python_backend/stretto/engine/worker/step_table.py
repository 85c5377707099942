"""Device table that describes a step's rows to the kernels, uploaded only if it changes."""

from dataclasses import dataclass

import numpy as np
import torch

from stretto.engine.kernels.gpu.columns import COLUMNS, DRAWS, RECEIVES
from stretto.engine.worker.batch import NO_ROW, StepRows
from stretto.engine.worker.slots import LIMITS, SCALES, SlotTables

AT = {name: index for index, name in enumerate(COLUMNS)}
FIRST_LIMIT, FIRST_SCALE = AT["task"], AT["text_temperature"]


@dataclass(frozen=True)
class Variant:
    """Heads that a step needs: text (`writes`), audio (`speaks`), or both."""

    writes: bool
    speaks: bool


def columns_of(
    rows: StepRows, partner: np.ndarray, is_unconditional: np.ndarray, tables: SlotTables, num_rows: int
) -> np.ndarray:
    """Return the step table of a batch, [C, N]; `partner` and `is_unconditional` are by slot."""
    slots, batch = rows.slots, np.arange(len(rows.slots))
    columns = np.zeros((len(COLUMNS), num_rows), np.int32)
    mine = columns[:, : len(slots)]
    row_of = np.full(len(partner) + 1, NO_ROW)  # the last entry is for slots without a partner
    row_of[slots[rows.samples]] = batch[rows.samples]
    draws = rows.samples & ~is_unconditional[slots]
    other = row_of[partner[slots]]
    is_paired = draws & (other != NO_ROW)
    mine[AT["role"], draws] = DRAWS.value
    mine[AT["role"], other[is_paired]] = RECEIVES.value
    mine[AT["slot"]] = slots
    mine[AT["other"]] = np.where(is_paired, other, batch)
    mine[AT["other_slot"]] = slots[mine[AT["other"]]]
    mine[AT["samples"]] = rows.samples
    mine[FIRST_LIMIT : FIRST_LIMIT + len(LIMITS)] = tables.limits[slots].T
    mine[FIRST_SCALE : FIRST_SCALE + len(SCALES)] = np.ascontiguousarray(tables.scales[slots].T).view(np.int32)
    return columns


class StepTable:
    """Step table on the device; nothing is uploaded while the batch stays the same."""

    def __init__(self, tables: SlotTables, num_rows: int):
        device = tables.state.device
        self.table = torch.zeros(len(COLUMNS), num_rows, dtype=torch.int32, device=device)
        self.num_uploads = 0
        self._tables, self._is_pinning = tables, device.type == "cuda"
        self._fingerprint: tuple[int, bytes, bytes] | None = None
        self._draws = np.zeros(0, np.bool_)

    def clear(self) -> None:
        """Mark all rows as inactive."""
        self.table.zero_()
        self._fingerprint = None

    def update(
        self, rows: StepRows, partner: np.ndarray, is_unconditional: np.ndarray, version: int
    ) -> tuple[Variant, bool]:
        """Update the table; return the variant, and True if a reply may enter audio without the host's knowledge.

        `version` changes whenever a slot changes its request.
        """
        fingerprint = version, rows.slots.tobytes(), rows.samples.tobytes()
        if fingerprint != self._fingerprint:
            columns = columns_of(rows, partner, is_unconditional, self._tables, self.table.shape[1])
            self._upload(columns)
            self._draws = columns[AT["role"], : len(rows.slots)] == DRAWS.value
            self._fingerprint = fingerprint
        may_write = rows.may_write & self._draws
        if not may_write.any():
            return Variant(False, bool(self._draws.any())), False
        unsure = may_write & rows.may_speak
        return Variant(True, bool((rows.may_speak & self._draws).any())), bool(unsure.any())

    def _upload(self, columns: np.ndarray) -> None:
        source = torch.from_numpy(columns)
        self.table.copy_(source.pin_memory() if self._is_pinning else source, non_blocking=True)
        self.num_uploads += 1
