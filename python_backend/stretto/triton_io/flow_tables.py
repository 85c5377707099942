"""Acknowledgement tables of the language models that send chunks to this process."""

from pathlib import Path

from stretto.records.envelope import FlowAddress
from stretto.triton_io.flow import DIRECTORY, FlowSlot, FlowTable


class FlowTables:
    """Tables opened by this process, by name; for the decoder."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._tables: dict[str, FlowTable] = {}

    def at(self, address: FlowAddress) -> FlowSlot:
        """Return the slot at an address, opening its table on first use, and letting go of those of dead owners."""
        if address.table not in self._tables:
            left = {name: table for name, table in self._tables.items() if table.path.exists()}
            self._tables = left | {address.table: FlowTable.open(address.table, self._directory)}
        return self._tables[address.table].at(address)
