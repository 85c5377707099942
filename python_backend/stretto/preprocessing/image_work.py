"""Limits on the work that an image file causes in a decoder, in addition to the limit on its number of pixels.

A file of a few bytes may require any number of passes over all pixels, or contain any number of segments.
"""

import re
from typing import Literal

from stretto.errors import InvalidRequest

MAX_SCANS = 100  # maximum for a JPEG; encoders write up to 10 for a progressive JPEG
MAX_SCANNED_PIXELS = 20 << 24  # in all scans together, 20 of the largest image; a scan without data takes 1 ns a pixel
MAX_SEGMENTS = 20_000  # in a file; Pillow takes 10 us for each. The largest PNG has 2,500 with libpng's buffer of 8 KiB
MAX_COMPRESSED = 300  # compressed texts and profiles of a PNG; Pillow takes up to 0.6 ms for each

JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # neither a byte of a scan nor a restart within one
TEMPORARY = 0x01
START_OF_IMAGE = 0xD8
END_OF_IMAGE = 0xD9
START_OF_SCAN = 0xDA
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK_BYTES = 12  # length, name and checksum
PNG_COMPRESSED = (b"zTXt", b"iTXt", b"iCCP")  # types of chunks that Pillow decompresses, each up to 1 MiB
WEBP_HEAD_BYTES = 12  # file header
WEBP_CHUNK_BYTES = 8  # name and length


def count_scans(data: bytes, field: str) -> int:
    """Return the number of scans of a JPEG file; 0 for PNG and WebP, whose passes need no limit.

    Raises:
        InvalidRequest: If the file has too many segments, or too many compressed ones.
    """
    num_scans = 0
    if data.startswith(PNG_SIGNATURE):
        if sum(map(data.count, PNG_COMPRESSED)) > MAX_COMPRESSED:
            expected = f"an image file of at most {MAX_COMPRESSED} compressed texts and profiles"
            raise InvalidRequest(field, expected, "more")
        num_segments = _num_chunks(data, len(PNG_SIGNATURE), 0, "big", PNG_CHUNK_BYTES)
    elif data.startswith(b"RIFF"):
        num_segments = _num_chunks(data, WEBP_HEAD_BYTES, 4, "little", WEBP_CHUNK_BYTES)
    else:
        num_segments, num_scans = _jpeg_segments(data)
    if num_segments > MAX_SEGMENTS:
        raise InvalidRequest(field, f"an image file of at most {MAX_SEGMENTS} segments", "more")
    return num_scans


def check_scans(num_scans: int, num_pixels: int, field: str) -> None:
    """Raise InvalidRequest if `num_scans` passes over `num_pixels` pixels are too much work."""
    max_scans = min(MAX_SCANS, MAX_SCANNED_PIXELS // max(1, num_pixels))
    if num_scans > max_scans:
        raise InvalidRequest(field, f"at most {max_scans} scans for {num_pixels} pixels", f"{num_scans} scans")


def _num_chunks(data: bytes, start: int, length_at: int, order: Literal["big", "little"], head_bytes: int) -> int:
    """Return the number of chunks of a file, or MAX_SEGMENTS + 1 if there are more.

    A chunk has `head_bytes` bytes in addition to its data. Its length, 4 bytes in this order, is at offset `length_at`.
    """
    at = start
    num_chunks = 0
    while at < len(data) and num_chunks <= MAX_SEGMENTS:
        at += head_bytes + int.from_bytes(data[at + length_at : at + length_at + 4], order)
        num_chunks += 1
    return num_chunks


def _jpeg_segments(data: bytes) -> tuple[int, int]:
    """Return the number of segments of a JPEG file up to the end of its image, and of scans among them.

    Counting stops after MAX_SEGMENTS segments.
    """
    at = 0
    num_segments = 0
    num_scans = 0
    while num_segments <= MAX_SEGMENTS and (match := JPEG_MARKER.search(data, at)) is not None:
        marker = match[1][0]
        at = match.end()
        if marker == END_OF_IMAGE:
            break
        num_segments += 1
        num_scans += marker == START_OF_SCAN
        if marker not in (START_OF_IMAGE, TEMPORARY):
            at += int.from_bytes(data[at : at + 2], "big")
    return num_segments, num_scans
