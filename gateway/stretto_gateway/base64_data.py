"""Audio or an image in the text of a request field: base64, or a `data:` URL."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from stretto_gateway.answers import refused

FETCHES_NOTHING = "base64 or a data: URL, because the gateway opens no URLs or files"
BLANKS = b" \t\r\n\v\f"  # for example, the line ends that the command `base64` writes
DATA_URL = "a data: URL with base64"
PART_BYTES = 1 << 20  # decoded at once, in 3 ms, while other threads wait; a multiple of 4
STANDARD = bytes.maketrans(b"-_", b"+/")  # from the URL-safe alphabet (RFC 4648, section 5)


def read_base64(param: str, text: str, expected: str = "base64") -> bytes:
    """Decode base64, or a `data:` URL with base64; raise ApiError for any other text.

    Blanks and the URL-safe alphabet, also without padding, are accepted, because programs write all of these forms.
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
        plain = _by_pieces(lambda piece: piece.translate(None, BLANKS), plain)
        if b"+" not in plain and b"/" not in plain:
            plain = _by_pieces(lambda piece: piece.translate(STANDARD), plain)
            if not plain.endswith(b"="):  # RFC 4648 lets the URL-safe alphabet have no padding
                plain += b"=" * (-len(plain) % 4)
        if plain.find(b"=", 0, -2) >= 0:
            raise ValueError("text after the padding")
        return _by_pieces(lambda piece: base64.b64decode(piece, validate=True), plain)
    except (binascii.Error, ValueError):
        raise refused(param, expected, text) from None


def _by_pieces(change: Callable[[bytes], bytes], data: bytes) -> bytes:
    return b"".join(change(data[at : at + PART_BYTES]) for at in range(0, len(data), PART_BYTES))


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """File in a request that has not been decoded yet; its fields are the arguments of `read_base64`."""

    param: str
    text: str
    expected: str = "base64"

    def decode(self) -> bytes:
        """Return the file's bytes; raise ApiError if the text is not base64."""
        return read_base64(self.param, self.text, self.expected)
