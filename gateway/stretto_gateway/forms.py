"""Uploaded files whose name has only the extended form `filename*` (RFC 5987)."""

import re

from python_multipart.multipart import parse_options_header
from starlette import formparsers

EXTENDED_NAME = re.compile(rb";\s*filename\*\s*=", re.IGNORECASE)
NAME = b"filename"


def parse_disposition(header: bytes | str | None) -> tuple[bytes, dict[bytes, bytes]]:
    """Return a header's value and parameters; a part that has only `filename*` gets an empty file name."""
    value, parameters = parse_options_header(header)
    text = header.encode() if isinstance(header, str) else header or b""
    if NAME not in parameters and EXTENDED_NAME.search(text):
        parameters[NAME] = b""
    return value, parameters


def accept_extended_names() -> None:
    """Make forms read a part that has only an extended file name as a file."""
    # WORKAROUND(python-multipart 0.0): drops `filename*`, so a part with only this name would be read as text
    formparsers.parse_options_header = parse_disposition
