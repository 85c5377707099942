"""How many utterances a server still speaks, read from the language model's own table."""

from collections.abc import Iterable
from pathlib import Path

from stretto.triton_io.draining import is_passing
from stretto.triton_io.flow import DIRECTORY, tables_of

QUIET_POLLS = 3  # polls in a row without an utterance: one may be on its way from the preprocessor


def num_active_utterances(server_pid: int, directory: Path = DIRECTORY) -> int:
    """Utterances in flight in the server with this pid."""
    return sum(table.num_active() for table in tables_of(server_pid, directory))


def has_drained(server_pid: int, drain_file: Path, polls: Iterable[None]) -> bool:
    """Whether a server that takes no more requests has ended all of them before the polls are over."""
    quiet = 0
    for _ in polls:
        is_busy = is_passing(drain_file) or num_active_utterances(server_pid) > 0
        quiet = 0 if is_busy else quiet + 1
        if quiet == QUIET_POLLS:
            return True
    return False
