"""Limits on options that are passed to the server as JSON."""

import json
from typing import Any

from stretto_gateway.api_error import refused

# The server's limits (`preprocessing/json_field.py`), checked here before the values take up memory.
MAX_BYTES, MAX_DEPTH = 16 * 1024, 8
OBJECT_BYTES = 48  # most memory per byte of JSON once parsed: two bytes can be a list
SMALL_BYTES = 1024  # JSON that is always admitted


def json_bytes(value: Any, param: str) -> int:
    """Return the size of `value` as the client's JSON; raise ApiError if it exceeds the server's limits."""
    depth, num_values, level = 0, 1, [value]
    while level := [each for each in level if isinstance(each, (list, dict))]:
        depth, num_values = depth + 1, num_values + sum(map(len, level))
        if depth > MAX_DEPTH:
            raise refused(param, f"JSON nested at most {MAX_DEPTH} deep", f"more than {MAX_DEPTH} levels")
        if num_values > MAX_BYTES:  # before they are serialised
            raise refused(param, f"at most {MAX_BYTES} bytes of JSON", f"{num_values} values")
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    num_bytes = len(json.dumps(value))
    if num_bytes > MAX_BYTES:
        raise refused(param, f"at most {MAX_BYTES} bytes of JSON", f"{num_bytes} bytes")
    return num_bytes


def options_bytes(options: dict[str, Any]) -> int:
    """Return the size of all options as JSON.

    Raises:
        ApiError: They exceed the server's limits; it names the first option that is too large or nested too deep.
    """
    num_bytes = 0
    for name, value in options.items():
        num_bytes += json_bytes({name: value}, name)
        if num_bytes > MAX_BYTES:
            raise refused(name, f"at most {MAX_BYTES} bytes of JSON in all options", f"{num_bytes} bytes")
    return num_bytes


def held_bytes(options: dict[str, Any]) -> int:
    """Return the memory of stored options, beyond the small amount that is always admitted."""
    return OBJECT_BYTES * max(0, len(json.dumps(options)) - SMALL_BYTES)
