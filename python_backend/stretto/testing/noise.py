"""Noise of the slow reference: a hash of seed, position, stream and token, in plain Python.

Tests of draws import it without transformers, which take seconds to import.
"""

from functools import lru_cache

MASK = 0xFFFFFFFF


def mix(x: int) -> int:
    """Return the hash `lowbias32` of a 32-bit number."""
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    return x ^ x >> 16


@lru_cache(1)
def stream_key(seed: int, position: int, stream: int, is_redraw: bool, attempt: int) -> int:
    """Return the hash that all tokens of one draw have in common."""
    key = mix(mix(seed >> 32) + (seed & MASK) & MASK)
    key = mix(key + attempt * 0x165667B1 & MASK) if attempt else key
    key = mix(key + position * 0x9E3779B1 & MASK)
    key = mix(key + stream * 0x85EBCA6B & MASK)
    return mix(key + 0x27D4EB2F & MASK) if is_redraw else key


def uniform(seed: int, position: int, stream: int, token: int, is_redraw: bool = False, attempt: int = 0) -> float:
    """Return the number in (0, 1) by which a token is drawn; `attempt` counts how often its row is drawn anew."""
    key = stream_key(seed, position, stream, is_redraw, attempt)
    return ((mix(key + token * 0xC2B2AE35 & MASK) >> 9) + 0.5) / 2**23
