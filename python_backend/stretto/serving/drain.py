"""How many utterances a server still speaks, read from the language model's own table."""

from pathlib import Path

from stretto.triton_io.flow import DIRECTORY, PREFIX, FlowTable


def num_active_utterances(server_pid: int, directory: Path = DIRECTORY) -> int:
    """Utterances in flight in the server with this pid."""
    active = 0
    for path in directory.glob(f"{PREFIX}{server_pid}_*"):
        table = FlowTable.open(path.name, directory)
        active += table.num_active()
        table.close()
    return active
