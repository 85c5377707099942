"""The tables of the language models that send this process chunks."""

from pathlib import Path

from stretto.records.envelope import FlowAddress
from stretto.triton_io.flow import DIRECTORY, FlowSlot, FlowTable


class FlowTables:
    """The tables that this process has opened, by name: for the decoder."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory
        self._tables: dict[str, FlowTable] = {}

    def at(self, address: FlowAddress) -> FlowSlot:
        """The slot of an address, its table opened on first use."""
        if address.table not in self._tables:
            self._tables[address.table] = FlowTable.open(address.table, self._directory)
        return self._tables[address.table].at(address)
