"""Audio or an image in the text of a request field: base64, or a `data:` URL."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

from stretto_gateway.answers import refused

FETCHES_NOTHING = "base64 or a data: URL, because the gateway opens no URLs or files"
BLANKS = b" \t\r\n\v\f"  # such as the ends of lines that the command `base64` writes
DATA_URL = "a data: URL with base64"
STANDARD = bytes.maketrans(b"-_", b"+/")  # from the URL-safe alphabet (RFC 4648, section 5)


def read_base64(param: str, text: str, expected: str = "base64") -> bytes:
    """Decode base64.

    Blanks and the URL-safe alphabet, also without padding, are accepted, because programs write all of these forms.

    Args:
        param: Name of the field, for error messages.
        text: Base64, or a `data:` URL with base64.
        expected: Description of valid text, for error messages.

    Raises:
        ApiError: `text` is another kind of URL, or is not base64.
    """
    data = text
    if text[:5].lower() == "data:":
        head, _, data = text.partition(",")
        if not head.lower().rstrip().endswith(";base64"):
            raise refused(param, "a data: URL whose data is base64 (;base64)", text)
    elif "://" in text[:64] or text[:5].lower() == "file:":
        raise refused(param, FETCHES_NOTHING, text)
    try:
        plain = unquote_to_bytes(data) if "%" in data else data.encode("ascii")
        plain = plain.translate(None, BLANKS)
        if b"+" not in plain and b"/" not in plain:
            plain = plain.translate(STANDARD)
            if not plain.endswith(b"="):  # RFC 4648 lets the URL-safe alphabet have no padding
                plain += b"=" * (-len(plain) % 4)
        return base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError):
        raise refused(param, expected, text) from None
