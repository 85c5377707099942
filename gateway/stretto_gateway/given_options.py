"""Options that the server is to check: how much JSON a caller may give as such, and what that takes here."""

import json
from typing import Any

from stretto_gateway.api_error import refused

# Those of the server (`preprocessing/json_field.py`), which refuses more anyway: by then it would be in memory here.
MAX_BYTES, MAX_DEPTH = 16 * 1024, 8
OBJECT_BYTES = 48  # that a byte of JSON takes at most once it is read: two of them are a list
SMALL_BYTES = 1024  # of JSON, for which there is always room


def json_bytes(value: Any, param: str) -> int:
    """How many bytes of JSON `value` is, as the client writes them; ApiError where the server takes no such value."""
    depth, num_values, level = 0, 1, [value]
    while level := [each for each in level if isinstance(each, (list, dict))]:
        depth, num_values = depth + 1, num_values + sum(map(len, level))
        if depth > MAX_DEPTH:
            raise refused(param, f"JSON nested at most {MAX_DEPTH} deep", f"more than {MAX_DEPTH} levels")
        if num_values > MAX_BYTES:  # before anything is made of them
            raise refused(param, f"at most {MAX_BYTES} bytes of JSON", f"{num_values} values")
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    num_bytes = len(json.dumps(value))
    if num_bytes > MAX_BYTES:
        raise refused(param, f"at most {MAX_BYTES} bytes of JSON", f"{num_bytes} bytes")
    return num_bytes


def options_bytes(options: dict[str, Any]) -> int:
    """How many bytes of JSON all of them are; ApiError names the first with which they are more than the server takes,
    or one that is nested too deep."""
    num_bytes = 0
    for name, value in options.items():
        num_bytes += json_bytes({name: value}, name)
        if num_bytes > MAX_BYTES:
            raise refused(name, f"at most {MAX_BYTES} bytes of JSON in all options", f"{num_bytes} bytes")
    return num_bytes


def held_bytes(options: dict[str, Any]) -> int:
    """What they take while they are kept, beyond those of which there are few."""
    return OBJECT_BYTES * max(0, len(json.dumps(options)) - SMALL_BYTES)
