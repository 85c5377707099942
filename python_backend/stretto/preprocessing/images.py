"""Image files: their formats and limits, and their decoding.

Only the header is read before the limits are checked. Images are decoded in the processes that decode audio.
"""

import warnings
from io import BytesIO

import numpy as np

from stretto.errors import InvalidRequest
from stretto.preprocessing.file_size import check_file_size

FORMATS = ("JPEG", "PNG", "WEBP")
READABLE = "JPEG, PNG or WebP"
MAX_PIXELS = 16_777_216  # 48 MiB of colours
MAX_REQUEST_PIXELS = 4 * MAX_PIXELS  # of all images of a request, which are in memory together
MAX_SIDE = 16_384
TOO_LARGE = f"at most {MAX_PIXELS} pixels, and at most {MAX_SIDE} in a side"


def read_image(data: bytes, field: str) -> np.ndarray:
    """Decode an image file as transformers does: with the rotation in its EXIF data, and without transparency.

    Args:
        data: Contents of a file in one of the formats of READABLE.
        field: Name of the file in error messages.

    Returns:
        Colours, uint8 [height, width, 3].

    Raises:
        InvalidRequest: The file is too large, animated, or cannot be decoded.
    """
    from PIL import Image, ImageOps  # only processes that decode images need it

    check_file_size(len(data), field, READABLE)
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # about sizes that are refused below
            _check(image.size, getattr(image, "n_frames", 1), field)
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (InvalidRequest, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InvalidRequest(field, TOO_LARGE, "many times as many") from error
    except Exception as error:  # the library raises many classes
        raise InvalidRequest(field, f"an undamaged {READABLE} file", f"{type(error).__name__}") from error


def _check(size: tuple[int, int], num_frames: int, field: str) -> None:
    """Raise InvalidRequest if an image is animated, or has too many pixels."""
    width, height = size
    if num_frames != 1:
        raise InvalidRequest(field, "an image that is not animated", f"{num_frames} frames")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InvalidRequest(field, TOO_LARGE, f"{width} x {height} pixels")
