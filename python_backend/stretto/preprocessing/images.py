"""Image files: their formats and limits, and their decoding, for which a server uses a process (`audio_worker.py`).

Limits are checked from the headers alone, before any pixel is decoded, so that a small file cannot exhaust memory.
"""

import warnings
from io import BytesIO
from typing import Any

import numpy as np

from stretto.errors import InvalidRequest
from stretto.preprocessing.file_size import check_file_size
from stretto.preprocessing.image_work import check_scans, count_scans

FORMATS = ("JPEG", "PNG", "WEBP")
READABLE = "JPEG, PNG or WebP"
MAX_PIXELS = 16_777_216  # 48 MiB of colours
MAX_REQUEST_PIXELS = 4 * MAX_PIXELS  # maximum for all images of a request, which are in memory together
MAX_SIDE = 16_384
MAX_EXIF_BYTES = 65_535  # as in a JPEG; a PNG with more is read without its rotation
TOO_LARGE = f"at most {MAX_PIXELS} pixels, and at most {MAX_SIDE} in a side"


def read_image(data: bytes, field: str) -> np.ndarray:
    """Decode an image file to colours, uint8 [height, width, 3].

    As in transformers, the rotation in its EXIF data is applied, and transparency is dropped.
    """
    from PIL import Image  # imported here, because only processes that decode images need it

    check_file_size(len(data), field, READABLE)
    num_scans = count_scans(data, field)  # before Pillow reads all segments
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # warnings about sizes that are refused below
            _check(image.size, getattr(image, "n_frames", 1), field)
            check_scans(num_scans, image.width * image.height, field)
            return np.asarray(_turned(image).convert("RGB"))
    except (InvalidRequest, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InvalidRequest(field, TOO_LARGE, "many times as many") from error
    except Exception as error:  # the library raises many classes
        raise InvalidRequest(field, f"an undamaged {READABLE} file", f"{type(error).__name__}") from error


def _check(size: tuple[int, int], num_frames: int, field: str) -> None:
    width, height = size
    if num_frames != 1:
        raise InvalidRequest(field, "an image that is not animated", f"{num_frames} frames")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InvalidRequest(field, TOO_LARGE, f"{width} x {height} pixels")


def _turned(image: Any) -> Any:
    """Return a Pillow image with the rotation in its EXIF data applied.

    Pillow's `exif_transpose` would also write the data again: 64 KiB may refer to gigabytes.
    """
    from PIL.ExifTags import Base
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    image.load()  # the data may follow the pixels
    if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
        return image
    turn = turns.get(image.getexif().get(Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)
