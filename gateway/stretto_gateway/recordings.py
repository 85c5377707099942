"""Recordings inside JSON: base64, plain or as a `data:` URL."""

import base64
import binascii

from stretto_gateway.api_error import refused

FETCHES_NOTHING = "base64 or a data: URL, because the gateway opens no addresses and no files"


def read_recording(param: str, text: str, max_bytes: int) -> bytes:
    """Return the bytes of the file in `text`.

    Args:
        param: The field, for error messages.
        text: Base64, or a `data:` URL with base64.
        max_bytes: Largest file.

    Raises:
        ApiError: `text` is another kind of URL, is not base64, or is too long.
    """
    data = text
    if text[:5].lower() == "data:":
        head, _, data = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise refused(param, "a data: URL with ;base64", text)
    elif "://" in text[:64] or text[:5].lower() == "file:":
        raise refused(param, FETCHES_NOTHING, text)
    if len(data) > 4 * (max_bytes + 2) // 3:
        raise refused(param, f"at most {max_bytes} bytes", f"{len(data)} characters of base64")
    try:
        recording = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise refused(param, FETCHES_NOTHING, text) from None
    if not 0 < len(recording) <= max_bytes:
        raise refused(param, f"1 to {max_bytes} bytes", f"{len(recording)} bytes")
    return recording
