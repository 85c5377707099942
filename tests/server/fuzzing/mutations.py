"""Mutations of valid requests: fields of another type or size, repeated or missing fields, and altered bytes."""

import json
from random import Random
from typing import Any

NUMBERS = (0, -1, 1, 2**31, -(2**31), 2**63, -(2**63) - 1, 10**400, 0.5, 1e308, float("nan"), float("inf"), -0.0)
TEXTS = ("", " ", "a", "\0", "\ud800", "\u202e", "\U0001f600", "a" * 3000, "NaN", "1e999", "true", "{}", "%s%n", "..")
VALUES = (None, True, False, [], {}, [[]], [{}], [None] * 40, {"": {}}, *NUMBERS, *TEXTS)
BYTES = (b"", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x80" * 11, b"[" * 600, b'{"a":' * 600, b"\r\n", b"a" * 3000)


def flipped(data: bytes, draw: Random) -> bytes:
    """Return the bytes with some changed, removed or added."""
    changed = bytearray(data)
    match draw.randrange(4):
        case 0:
            for _ in range(draw.randint(1, 4) if changed else 0):
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        case 1:
            del changed[draw.randrange(len(changed) + 1) :]
        case 2:
            at = draw.randrange(len(changed) + 1)
            changed[at:at] = draw.choice(BYTES)
        case 3:
            begin = draw.randrange(len(changed) + 1)
            del changed[begin : begin + draw.randint(1, 16)]
    return bytes(changed)


def varied(record: Any, draw: Random) -> Any:
    """Return a JSON value with one change at any depth."""
    if not isinstance(record, dict | list) or not record or draw.random() < 0.1:
        return draw.choice(VALUES)
    place = draw.choice(sorted(record)) if isinstance(record, dict) else draw.randrange(len(record))
    changed: Any = record.copy()
    match draw.randrange(8):
        case 0:
            del changed[place]
        case 1 if isinstance(changed, dict):
            changed[draw.choice(("unknown", "", "\ud800", "__class__", f"{place}\0", place.upper()))] = changed[place]
        case 1:
            changed.insert(place, changed[place])
        case 2:
            changed[place] = [changed[place]]
        case 3:
            changed[place] = str(changed[place])
        case _:
            changed[place] = varied(changed[place], draw)
    return changed


def as_json(record: Any, draw: Random) -> bytes:
    """Return `record` as JSON, rarely with invalid bytes, repeated names, or another encoding."""
    text = json.dumps(record)
    match draw.randrange(24):
        case 0:
            return flipped(text.encode(), draw)
        case 1:
            return text.encode("utf-16")
        case 2 if text.startswith("{") and len(text) > 2:
            return f"{text[:-1]}, {text[1:]}".encode()
        case 3:
            return json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass")
    return text.encode()
