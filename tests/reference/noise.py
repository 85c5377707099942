"""The counter-based noise as plain Python on whole numbers."""

MASK = 0xFFFFFFFF


def mix(x: int) -> int:
    """lowbias32."""
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    return x ^ x >> 16


def uniform(seed: int, position: int, stream: int, token: int, is_redraw: bool = False) -> float:
    key = mix(mix(seed >> 32) + (seed & MASK) & MASK)
    key = mix(key + position * 0x9E3779B1 & MASK)
    key = mix(key + stream * 0x85EBCA6B & MASK)
    key = mix(key + 0x27D4EB2F & MASK) if is_redraw else key
    return ((mix(key + token * 0xC2B2AE35 & MASK) >> 9) + 0.5) / 2**23
