"""Autoscaling policy: the desired number of servers for a number of utterances and of waiting rows."""

import math
from typing import Any

WAITING = "waiting_rows"  # metric reported by each server
ROWS_A_SERVER = 4.0  # rows per server that may wait for a batch slot, on average


def wanted(utterances: float, waiting_rows: float, running: int, streams_a_server: float) -> int:
    """Return the desired number of servers, at least one more than running if many rows wait in the running ones.

    Args:
        utterances: Utterances with and without a server.
        waiting_rows: Rows that wait for a batch slot, in all servers.
        streams_a_server: Target utterances per server.
    """
    needed = math.ceil(utterances / streams_a_server)
    return max(needed, running + 1) if waiting_rows > ROWS_A_SERVER * running > 0 else needed


def policy(context: Any) -> tuple[int, dict[str, Any]]:
    """Return `wanted` as a Ray Serve autoscaling policy; Ray applies its delays and bounds afterwards."""
    waiting = (context.aggregated_metrics or {}).get(WAITING, {})
    target = context.config.target_ongoing_requests
    return wanted(context.total_num_requests, sum(waiting.values()), context.current_num_replicas, target), {}
