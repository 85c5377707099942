"""Which field of a request an error of pydantic's is about, as the caller calls it."""

from collections.abc import Mapping
from typing import Any

MAX_NAME_CHARS = 200  # of a field: what is unknown has the caller's own name


def field_path(error: Mapping[str, Any], record: Any) -> str:
    """The fields that lead to an error in `record`, with points between; '' for the whole of it.

    Where a field may be of several types, pydantic's locations name the type, too, of which the caller knows nothing.
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
