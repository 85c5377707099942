"""How many servers there should be: by the utterances that there are, and by the rows that wait in the servers."""

import math
from typing import Any

WAITING = "waiting_rows"  # the figure that a server tells
ROWS_A_SERVER = 4.0  # that may wait for a place in its batch, on average


def wanted(utterances: float, waiting_rows: float, running: int, streams_a_server: float) -> int:
    """Servers for so many utterances, with and without a server yet; one more where rows wait in those that run."""
    needed = math.ceil(utterances / streams_a_server)
    return max(needed, running + 1) if waiting_rows > ROWS_A_SERVER * running > 0 else needed


def policy(context: Any) -> tuple[int, dict[str, Any]]:
    """The same, as Ray Serve's autoscaling policies are called: its delays and bounds come on top."""
    waiting = (context.aggregated_metrics or {}).get(WAITING, {})
    target = context.config.target_ongoing_requests
    return wanted(context.total_num_requests, sum(waiting.values()), context.current_num_replicas, target), {}
