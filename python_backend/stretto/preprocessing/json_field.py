"""Parser for untrusted JSON: size, depth and number of parts are checked first. Independent of field meanings."""

import json
import re
from typing import Any, NoReturn

from stretto.errors import InvalidRequest

MAX_BYTES = 16 * 1024
MAX_DEPTH = 8
MAX_PARTS = 8192  # strings and brackets: 64 turns of 32 code lists each have 4674; numbers cost less
# A string, closed or not, or a bracket; nothing else affects the nesting depth. Possessive quantifiers (`+` after a
# count) prevent backtracking, so that escapes need no memory.
STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


def read_json(field: str, text: str, max_bytes: int = MAX_BYTES) -> Any:
    """Parse `text`.

    Args:
        field: Name of the input in error messages.
        text: JSON.
        max_bytes: Largest size in bytes.

    Raises:
        InvalidRequest: The text is too long, too deeply nested, has too many parts, is malformed, repeats a key, or
            contains NaN or infinity.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise InvalidRequest(field, f"at most {max_bytes} bytes of JSON", f"{size} bytes")
    depth, num_parts = measured(text)
    if depth > MAX_DEPTH:
        raise InvalidRequest(field, f"JSON nested at most {MAX_DEPTH} deep", f"{depth} levels or more")
    if num_parts > MAX_PARTS:
        raise InvalidRequest(field, f"at most {MAX_PARTS} strings and brackets of JSON", "more")

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


def measured(text: str) -> tuple[int, int]:
    """Return the greatest nesting depth, and the number of brackets and strings.

    Brackets in strings are not counted. Malformed text gives upper bounds. Counting stops once a limit is exceeded.
    """
    depth = deepest = num_parts = 0
    for match in STRING_OR_BRACKET.finditer(text):
        num_parts += 1
        character = match.group()
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
        if deepest > MAX_DEPTH or num_parts > MAX_PARTS:
            break
    return deepest, num_parts
