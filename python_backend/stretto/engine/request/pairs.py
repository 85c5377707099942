"""Ids of CFG pairs: `r` for the conditional request, `r#unconditional` for the other."""

from collections.abc import Sequence

UNCONDITIONAL_SUFFIX = "#unconditional"


def partner_of(request_id: str) -> str:
    """Return the id of the other request of the CFG pair."""
    if request_id.endswith(UNCONDITIONAL_SUFFIX):
        return request_id.removesuffix(UNCONDITIONAL_SUFFIX)
    return request_id + UNCONDITIONAL_SUFFIX


def num_guided(switches: Sequence[int], num_rows: int) -> int:
    """Return how many of the first `num_rows` audio rows are guided.

    Args:
        switches: Rows at which guidance stops, resumes, stops, and so on.
        num_rows: Number of audio rows.
    """
    edges = [0, *(min(row, num_rows) for row in switches), num_rows]
    return sum(goes - comes for comes, goes in zip(edges[::2], edges[1::2], strict=False))


def max_blocks(num_rows: int, block_size: int, is_guided: bool) -> int:
    """Return the most KV blocks that a reply of `num_rows` rows (prompt included) may hold."""
    return -(-num_rows // block_size) * (2 if is_guided else 1)
