"""JSON from strangers: size and depth are checked before it is parsed. It knows no field's meaning."""

import json
import re
from typing import Any, NoReturn

from stretto.errors import InvalidRequest

MAX_BYTES = 16 * 1024
MAX_DEPTH = 8
# A string, closed or not, or a bracket: whatever else there is has no say in how deep JSON is.
STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.?[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def read_json(field: str, text: str, max_bytes: int = MAX_BYTES) -> Any:
    """The value of `text`; InvalidRequest if it is too long, too deep or malformed, or repeats keys or holds NaN."""
    size = len(text.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise InvalidRequest(field, f"at most {max_bytes} bytes of JSON", f"{size} bytes")
    depth = nesting(text)
    if depth > MAX_DEPTH:
        raise InvalidRequest(field, f"JSON nested at most {MAX_DEPTH} deep", f"{depth} levels")

    def refuse_constant(constant: str) -> NoReturn:
        raise InvalidRequest(field, "finite numbers", constant)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            raise InvalidRequest(field, "each key once", "a repeated key")
        return record

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except InvalidRequest:
        raise
    except ValueError as error:
        raise InvalidRequest(field, "valid JSON", f"an error: {error}") from error


def nesting(text: str) -> int:
    """The deepest level of brackets outside strings; an upper bound where `text` is malformed."""
    depth = deepest = 0
    for match in STRING_OR_BRACKET.finditer(text):
        character = match.group()
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
