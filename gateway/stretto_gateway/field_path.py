"""Request field that a pydantic error refers to, under the caller's name."""

from collections.abc import Mapping
from typing import Any

MAX_NAME_CHARS = 200  # the names of unknown fields are the caller's


def field_path(error: Mapping[str, Any], record: Any) -> str:
    """Return the dotted path of an error in `record`; empty for the whole record.

    For a field of several types, pydantic's locations also contain the type's name, which is left out.
    """
    names: list[str] = []
    location = error["loc"]
    for place, part in enumerate(location):
        is_missing = error["type"] == "missing" and place == len(location) - 1
        if isinstance(record, Mapping) and (part in record or is_missing):
            record = record.get(part)
        elif isinstance(record, list) and isinstance(part, int):
            record = record[part]
        else:
            continue
        names.append(str(part))
    return ".".join(names)[:MAX_NAME_CHARS].encode(errors="backslashreplace").decode()
