"""Which server an utterance goes to: that of its conversation, as long as that is no busier than the others."""

import hashlib
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

BOUND = 1.25  # of the mean load, that a conversation's server may have (Mirrokni et al. 2018, bounded loads)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server: its name, the utterances that it has, and whether it takes more, and answers at all."""

    name: str
    load: int
    is_ready: bool = True


def ranked(key: str, candidates: Sequence[Candidate], refused: Collection[str], free: int) -> list[str]:
    """The names of all, the best first; then those that are not ready, and at last those that have refused already.

    The last are there because Ray's router looks for ever for a server that it is not given, and holds up others
    meanwhile: they say themselves that they take nothing.

    Rendezvous hashing: each key has an order of all servers of its own, and keeps it when others come or go. free: so
    many utterances do a server no harm, whatever the others have. Without a key, the least busy is the best.
    """
    able = [each for each in candidates if each.is_ready and each.name not in refused]
    unready = [each for each in candidates if not each.is_ready and each.name not in refused]
    last = [each for each in candidates if each.name in refused]
    return [name for each in (able, unready, last) for name in _best_first(key, each, free)]


def _best_first(key: str, those: Sequence[Candidate], free: int) -> list[str]:
    by_load = sorted(those, key=lambda each: (each.load, random.random()))
    if not key or not those:
        return [each.name for each in by_load]
    bound = max(free, math.ceil(BOUND * (sum(each.load for each in those) + 1) / len(those)))
    kept = sorted((each for each in those if each.load < bound), key=lambda each: weight(key, each.name), reverse=True)
    return [each.name for each in [*kept, *(each for each in by_load if each.load >= bound)]]


def weight(key: str, name: str) -> bytes:
    """Where a server stands in the order of a key: the higher, the earlier."""
    return hashlib.blake2b(f"{key}\n{name}".encode(), digest_size=8).digest()
