"""Choice of a server for each utterance: that of its conversation, unless its load is far above the others'."""

import hashlib
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

BOUND = 1.25  # limit on the load of a conversation's server, times the mean (bounded loads, Mirrokni et al. 2018)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server as seen by the router; `is_ready` is True if it accepts utterances and responds."""

    name: str
    load: int
    is_ready: bool = True


def ranked(key: str, candidates: Sequence[Candidate], refused: Collection[str], free: int) -> list[str]:
    """Return the names of all candidates, the best first.

    Each key has its own fixed order of servers (rendezvous hashing), which does not change when other servers are added
    or removed. Ready servers come first, then servers that are not ready, and last those that have refused this
    request. All are included because Ray's router retries forever without a candidate, and delays other requests
    meanwhile. Servers that cannot accept a request refuse it themselves.

    Args:
        key: Key of the conversation; if empty, the least loaded server is best.
        free: Number of utterances below which a server keeps its conversations at any load of the others.
    """
    able = [candidate for candidate in candidates if candidate.is_ready and candidate.name not in refused]
    unready = [candidate for candidate in candidates if not candidate.is_ready and candidate.name not in refused]
    last = [candidate for candidate in candidates if candidate.name in refused]
    return [name for group in (able, unready, last) for name in _best_first(key, group, free)]


def _best_first(key: str, those: Sequence[Candidate], free: int) -> list[str]:
    by_load = sorted(those, key=lambda candidate: (candidate.load, random.random()))
    if not key or not those:
        return [candidate.name for candidate in by_load]
    bound = max(free, math.ceil(BOUND * (sum(candidate.load for candidate in those) + 1) / len(those)))
    kept = sorted(
        (candidate for candidate in those if candidate.load < bound),
        key=lambda candidate: weight(key, candidate.name),
        reverse=True,
    )
    return [candidate.name for candidate in [*kept, *(candidate for candidate in by_load if candidate.load >= bound)]]


def weight(key: str, name: str) -> bytes:
    """Return the position of a server in a key's order; higher values come first."""
    return hashlib.blake2b(f"{key}\n{name}".encode(), digest_size=8).digest()
