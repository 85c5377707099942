"""Image files are decoded as transformers does, and those of attackers are refused with the limit."""

import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from stretto.errors import InvalidRequest
from stretto.family.prompting import Piece
from stretto.preprocessing.audio import Recording, read_recording
from stretto.preprocessing.audio_worker import AudioProcess
from stretto.preprocessing.file_size import MAX_FILE_BYTES
from stretto.preprocessing.images import read_image
from stretto.preprocessing.request import within_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def file(image: Image.Image, container: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, container, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", *chunks: bytes) -> bytes:
    """Return a PNG file of this size with any data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def process() -> Iterator[AudioProcess]:
    opened = AudioProcess()
    yield opened
    opened.close()


RGB = Image.fromarray(PIXELS)
GOOD: dict[str, Callable[[], bytes]] = {
    "png": lambda: file(RGB),
    "jpeg": lambda: file(RGB, "JPEG"),
    "webp": lambda: file(RGB, "WEBP", lossless=True),
    "grey": lambda: file(RGB.convert("L")),
    "palette": lambda: file(RGB.convert("P")),
    "transparent": lambda: file(RGB.convert("RGBA")),
    "16 bit": lambda: file(Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 200)),
    "cmyk": lambda: file(RGB.convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("name", GOOD)
def test_files_are_decoded_in_place_and_in_the_process(process: AudioProcess, name: str) -> None:
    data = GOOD[name]()
    expected = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    recording = Recording("image", data, is_image=True)
    for read in (read_recording, process.read):
        pixels = read(recording, 0.0, 0)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("orientation", range(10))
def test_images_are_turned_as_their_camera_was(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(RGB, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    assert np.array_equal(read_image(data, "image"), expected)


def with_scans(data: bytes, number: int) -> bytes:
    """Return a progressive JPEG with its last scan several times more."""
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * number + data[-2:]


PROGRESSIVE = file(RGB, "JPEG", progressive=True)
BLACK = file(Image.new("RGB", (4096, 4096)), "JPEG", progressive=True)


def test_progressive_images_are_read() -> None:
    expected = np.asarray(Image.open(BytesIO(PROGRESSIVE)))
    assert np.array_equal(read_image(PROGRESSIVE, "image"), expected)
    appended = PROGRESSIVE + b"\xff\xda" * 1000  # such as a film after the image
    assert np.array_equal(read_image(appended, "image"), expected)
    assert read_image(BLACK, "image").shape == (4096, 4096, 3)


def test_metadata_beyond_the_limit_do_not_turn_the_image() -> None:
    tags = b"".join(struct.pack("<HHII", number, 3, 1, 6) for number in range(1, 65_000))
    exif = b"II*\0" + struct.pack("<IH", 8, 64_999) + tags + bytes(4)
    data = file(RGB).replace(chunk(b"IEND", b""), chunk(b"eXIf", exif) + chunk(b"IEND", b""))
    assert read_image(data, "image").shape == PIXELS.shape


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected the bytes of a JPEG, PNG or WebP file, got 0 bytes"),
    "text": (b"hello", "expected an undamaged JPEG, PNG or WebP file, got UnidentifiedImageError"),
    "large file": (bytes(MAX_FILE_BYTES + 1), "expected at most 20000000 bytes, got 20000001 bytes"),
    "cut": (file(RGB)[:2000], "expected an undamaged JPEG, PNG or WebP file"),
    "cut header": (file(RGB)[:20], "expected an undamaged JPEG, PNG or WebP file"),
    "wide": (png(16_385, 1), "expected at most 16777216 pixels, and at most 16384 in a side, got 16385 x 1 pixels"),
    "vast": (png(2**31 - 1, 2**31 - 1), "expected at most 16777216 pixels"),
    "bomb": (
        png(16_000, 16_000, bytes(1 << 20)),
        "expected at most 16777216 pixels, and at most 16384 in a side, got many",
    ),
    "no pixels": (png(0, 0), "expected an undamaged JPEG, PNG or WebP file"),
    "text bomb": (
        png(8, 8, b"", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))),
        "expected an undamaged JPEG, PNG or WebP file",
    ),
    "scans": (with_scans(PROGRESSIVE, 100), "expected at most 100 scans for 2400 pixels, got 110 scans"),
    "scans of many pixels": (with_scans(BLACK, 5000), "expected at most 20 scans for 16777216 pixels, got 5010 scans"),
    "segments": (
        PROGRESSIVE[:2] + b"\xff\xfe\0\2" * 20_001 + PROGRESSIVE[2:],
        "expected an image file of at most 20000 segments, got more",
    ),
    "chunks": (
        png(8, 8, bytes(200), *[chunk(b"tEXt", b"a\0b")] * 20_001),
        "expected an image file of at most 20000 segments, got more",
    ),
    "compressed chunks": (
        png(8, 8, bytes(200), *[chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20)))] * 301),
        "expected an image file of at most 300 compressed texts and profiles, got more",
    ),
    "chunks of WebP": (
        b"RIFF\0\0\0\0WEBP" + b"EXIF\0\0\0\0" * 20_001,
        "expected an image file of at most 20000 segments, got more",
    ),
    "gif": (file(RGB, "GIF"), "expected an undamaged JPEG, PNG or WebP file"),
    "tiff": (file(RGB, "TIFF"), "expected an undamaged JPEG, PNG or WebP file"),
    "animated": (
        file(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(9)]),
        "expected an image that is not animated, got 2 frames",
    ),
    "animated png": (
        file(RGB, save_all=True, append_images=[RGB.rotate(9)]),
        "expected an image that is not animated, got 2 frames",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_the_limit(process: AudioProcess, name: str) -> None:
    """The process lives on."""
    data, message = BAD[name]
    pid = process.pid
    for read in (read_recording, process.read):
        with pytest.raises(InvalidRequest) as caught:
            read(Recording("image[1]", data, is_image=True), 0.0, 0)
        assert str(caught.value).startswith("image[1]: ")
        assert message in str(caught.value)
    assert process.pid == pid
    assert np.array_equal(process.read(Recording("image", GOOD["png"](), is_image=True), 0.0, 0), PIXELS)


@pytest.mark.slow
def test_images_with_too_many_pixels_in_all_are_refused_before_the_rest_is_read() -> None:
    largest = np.broadcast_to(np.zeros(3, np.uint8), (4096, 4096, 3))
    pieces = (Piece("user", f"messages[{index}]", pixels=largest) for index in range(16))
    found = list[Piece]()
    with pytest.raises(InvalidRequest, match=r"messages\[4\]: expected at most 67108864 pixels in all images"):
        found.extend(within_pixels(pieces))
    assert len(found) == 4
    assert next(pieces).path == "messages[5]"
