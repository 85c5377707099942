"""Number of KV blocks that a request or a live session occupies."""

from typing import NamedTuple, Self


def blocks_in_window(num_rows: int, block_size: int, window: int | None, num_in_flight: int) -> int:
    """Return the maximum number of KV blocks that a request of `num_rows` rows occupies at any time.

    Args:
        block_size: Rows per block.
        window: Number of rows that each row attends to, including itself; None for all. Blocks before the window are
            freed.
        num_in_flight: Maximum number of rows of the request that are computed at the same time.
    """
    spanned = -(-num_rows // block_size)
    return spanned if window is None else min(spanned, -(-(window - 1 + num_in_flight) // block_size) + 1)


MAX_STEPS_IN_FLIGHT = 2  # with asynchronous scheduling
SPARE_BLOCKS = 2  # per live session with a window, because blocks before the window are freed only at an allocation


class SessionBlocks(NamedTuple):
    """KV blocks of a live session.

    Attributes:
        held: Maximum number of blocks that the session holds.
        spare: Number of further blocks that must be free.
    """

    held: int = 0
    spare: int = 0

    @classmethod
    def from_rows(cls, num_rows: int, block_size: int, window: int | None, num_steps: int) -> Self:
        """Return the blocks of a session with `num_steps` steps in flight, each of one row; see `blocks_in_window`."""
        return cls(blocks_in_window(num_rows, block_size, window, num_steps), 0 if window is None else SPARE_BLOCKS)

    @property
    def room(self) -> int:
        """Number of free blocks that are required to admit the session."""
        return self.held + self.spare


NO_SESSION = SessionBlocks()
