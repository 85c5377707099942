"""Wait for active utterances, counted in the language model's acknowledgement tables."""

from collections.abc import Iterable
from pathlib import Path

from stretto.triton_io.draining import is_passing
from stretto.triton_io.flow import DIRECTORY, tables_of

QUIET_POLLS = 3  # consecutive idle polls: an utterance may be in transit from the preprocessor


def num_active_utterances(server_pid: int, directory: Path = DIRECTORY) -> int:
    """Return the number of utterances in flight in the server with this pid."""
    return sum(table.num_active() for table in tables_of(server_pid, directory))


def has_drained(server_pid: int, drain_file: Path, polls: Iterable[None]) -> bool:
    """Return True if all requests of a draining server end before `polls` is exhausted.

    Args:
        server_pid: Pid of the server.
        drain_file: File by which the preprocessor refuses new requests.
        polls: Iterator that paces the polls.
    """
    quiet = 0
    for _ in polls:
        is_busy = is_passing(drain_file) or num_active_utterances(server_pid) > 0
        quiet = 0 if is_busy else quiet + 1
        if quiet == QUIET_POLLS:
            return True
    return False
