"""G.711, the audio coding of telephone networks: mono samples at 8 kHz with 8 bits each, in mu-law or A-law.

The tables follow ITU-T G.711, and round as the reference code of ITU-T G.191 does. FFmpeg and libsndfile round some
negative samples differently.
"""

import struct
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Law = Literal["mulaw", "alaw"]
RATE = 8_000  # Hz
LAWS: tuple[Law, ...] = ("mulaw", "alaw")
MEDIA_TYPES = {"mulaw": "audio/basic", "alaw": "audio/PCMA"}  # RFC 2046, section 4.3, and RFC 4856
INVERTED = {"mulaw": 0xFF, "alaw": 0xD5}  # bits that are inverted in each byte
WAV_FORMATS = {"mulaw": 7, "alaw": 6}  # RFC 2361
NUM_LEVELS = 128  # per sign: 8 segments of 16 steps


def _levels(law: Law) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the smallest magnitude that each level encodes, and the magnitude to which it is decoded, int64 [128]."""
    segment, step = np.divmod(np.arange(NUM_LEVELS), 16)
    if law == "mulaw":  # on the scale of 14 bits; 33 is the bias of the standard
        least = ((16 + step) << (segment + 1)) - 33
        return 4 * np.maximum(0, least), 4 * (least + (1 << segment))
    width = 1 << np.maximum(1, segment)  # on the scale of 13 bits; the first two segments have steps of the same width
    least = np.where(segment == 0, 2 * step, (16 + step) * width)
    return 8 * least, 8 * (least + width // 2)


def _decoding_table(law: Law) -> NDArray[np.int16]:
    """Return the sample that each byte encodes, int16 [256]."""
    code = np.arange(256) ^ INVERTED[law]
    magnitude = _levels(law)[1][code % NUM_LEVELS]
    return np.where(code >= NUM_LEVELS, -magnitude, magnitude).astype(np.int16)


def _encoding_table(law: Law) -> NDArray[np.uint8]:
    """Return the byte that encodes each sample, uint8 [65536], in the order of the samples as unsigned numbers."""
    sample = np.arange(65_536).astype(np.uint16).view(np.int16).astype(np.int64)
    magnitude = np.where(sample < 0, ~sample, sample)  # one's complement, as in G.191
    level = np.searchsorted(_levels(law)[0], magnitude, side="right") - 1
    return ((level + NUM_LEVELS * (sample < 0)) ^ INVERTED[law]).astype(np.uint8)


DECODED = {law: _decoding_table(law) for law in LAWS}
ENCODED = {law: _encoding_table(law) for law in LAWS}


def decode(law: Law, data: bytes) -> NDArray[np.int16]:
    """Return the samples, int16 [n], in `n` bytes."""
    return DECODED[law][np.frombuffer(data, np.uint8)]


def encode(law: Law, pcm: NDArray[Any]) -> bytes:
    """Return the bytes of the samples `pcm`, int16 [n]."""
    return ENCODED[law][pcm.astype(np.int16, copy=False).view(np.uint16)].tobytes()


def wav_file(law: Law, data: bytes) -> bytes:
    """Return a WAV file with these bytes, whose size must be below 4 GiB."""
    form = struct.pack("<4sIHHIIHHH", b"fmt ", 18, WAV_FORMATS[law], 1, RATE, RATE, 1, 8, 0)
    padding = b"\0" * (len(data) % 2)
    chunks = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data + padding
    return struct.pack("<4sI", b"RIFF", len(chunks)) + chunks
