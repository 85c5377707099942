"""Uploaded files whose name has only the extended form `filename*` (RFC 5987)."""

import re

from python_multipart.multipart import parse_options_header
from starlette import formparsers

EXTENDED_NAME = re.compile(rb";\s*filename\*\s*=", re.IGNORECASE)
NAME = b"filename"


def parse_disposition(value: str | bytes | None) -> tuple[bytes, dict[bytes, bytes]]:
    """Return a header's value and parameters; a part that has only `filename*` gets an empty file name."""
    disposition, parameters = parse_options_header(value)
    text = value.encode() if isinstance(value, str) else value or b""
    if NAME not in parameters and EXTENDED_NAME.search(text):
        parameters[NAME] = b""
    return disposition, parameters


def accept_extended_names() -> None:
    """Make forms read a part that has only an extended file name as a file."""
    # WORKAROUND(python-multipart 0.0): drops `filename*`, so a part with only this name would be read as text
    formparsers.parse_options_header = parse_disposition
