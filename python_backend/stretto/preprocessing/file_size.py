"""Limit on the size of audio and image files."""

from stretto.errors import InvalidRequest

MAX_FILE_BYTES = 20_000_000


def check_file_size(num_bytes: int, field: str, readable: str) -> None:
    """Raise InvalidRequest if a file is empty or too large."""
    if not num_bytes:
        raise InvalidRequest(field, f"the bytes of a {readable} file", "0 bytes")
    if num_bytes > MAX_FILE_BYTES:
        raise InvalidRequest(field, f"at most {MAX_FILE_BYTES} bytes", f"{num_bytes} bytes")
