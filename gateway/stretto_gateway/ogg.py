"""Incremental decoder for Ogg Opus, in parts of any size (RFC 3533, 6716 and 7845)."""

import zlib
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from stretto_gateway.encoding import DEFAULT_RATE

PATTERN = b"OggS"
HEAD_BYTES = 27
CHECKSUM = slice(22, 26)
MAX_PACKET_BYTES = 65_536  # above the longest Opus packet; also limits the comments
MAX_SILENT_PAGES = 512  # consecutive pages on which no packet of audio ends; a packet of 65,536 bytes has up to 257
# flags of a page
CONTINUES = 1
BEGINS = 2
OPUS_RATE = 48_000
MIN_HEADER_BYTES = 19
# Ogg's checksum is zlib's CRC-32 with the bits of each byte reversed, and without the inversions.
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class OggError(ValueError):
    """Raised if the bytes are not valid Ogg Opus."""


def checksum(page: bytes) -> int:
    """Return the checksum of a page whose checksum field is zero."""
    mirrored = zlib.crc32(page.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


CANCELLED = 0.5  # energy of the sum of two channels, relative to that of unrelated channels
SILENT = 1e-3  # energy of a channel, relative to the other one


class MonoMixer:
    """Mixer of one or two channels, which arrive in blocks, to mono (their mean).

    If the channels received so far cancel, one of them is inverted. If one of them is silent so far, the other one
    keeps its level.
    """

    def __init__(self) -> None:
        self._products = np.zeros((2, 2))

    def mix(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mono samples, float32 [n], of a block [C, n]."""
        signs = np.ones((len(block), 1), np.float32)
        gain = np.float32(1)
        if len(block) == 2:
            wide = block.astype(np.float64)
            self._products += wide @ wide.T
            energies = self._products.diagonal()
            signs[1] = -1 if self._products.sum() < CANCELLED * energies.sum() else 1
            gain = np.float32(2 if energies.min() < SILENT * energies.max() else 1)
        mono: NDArray[np.float32] = (block * signs).mean(0) * gain
        return mono


class OggOpusDecoder:
    """Decoder for one stream, or for several consecutive streams. Stereo is mixed to mono."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._serial: bytes | None = None
        self._packet = bytearray()  # beginning of a packet that continues on the next page
        self._num_packets = self._num_silent = 0  # `_num_silent`: pages since the last packet of audio
        self._decoder: Any = None
        self._resampler: Any = None
        self._mixer = MonoMixer()

    def push(self, data: bytes) -> Iterator[NDArray[np.float32]]:
        """Append bytes; yield the mono samples [n] at 24 kHz of each complete packet, or raise OggError."""
        self._unread += data
        while (page := self._next_page()) is not None:
            self._num_silent += 1
            if self._num_silent > MAX_SILENT_PAGES:
                raise OggError(f"expected audio within {MAX_SILENT_PAGES} pages, got none")
            for packet in self._packets(page):
                yield from self._decode(packet)

    def _next_page(self) -> bytes | None:
        """Remove and return the next page, or return None if it is not complete."""
        unread = self._unread
        if not PATTERN.startswith(unread[: len(PATTERN)]) and unread[: len(PATTERN)] != PATTERN:
            raise OggError(f"expected a page that begins with {PATTERN!r}, got {bytes(unread[:4])!r}")
        if len(unread) < HEAD_BYTES or len(unread) < HEAD_BYTES + unread[26]:
            return None
        size = HEAD_BYTES + unread[26] + sum(unread[HEAD_BYTES : HEAD_BYTES + unread[26]])
        if len(unread) < size:
            return None
        page = bytes(unread[:size])
        del unread[:size]
        if page[4]:
            raise OggError(f"expected version 0 of Ogg, got {page[4]}")
        if checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[CHECKSUM], "little"):
            raise OggError("expected a page with the checksum in its header, got another one")
        return page

    def _packets(self, page: bytes) -> Iterator[bytes]:
        """Yield the packets that end on a page."""
        serial = page[14:18]
        flags = page[5]
        if flags & BEGINS:
            self._serial = serial
            self._num_packets = 0
            self._decoder = None
        elif serial != self._serial:
            raise OggError("expected a page of the stream that has begun, got one of another stream")
        if not flags & CONTINUES:
            self._packet.clear()
        at = HEAD_BYTES + page[26]
        for size in page[HEAD_BYTES:at]:
            self._packet += page[at : at + size]
            at += size
            if len(self._packet) > MAX_PACKET_BYTES:
                raise OggError(f"expected packets of at most {MAX_PACKET_BYTES} bytes, got a longer one")
            if size < 255:
                packet = bytes(self._packet)
                self._packet.clear()
                yield packet

    def _decode(self, packet: bytes) -> Iterator[NDArray[np.float32]]:
        number = self._num_packets
        self._num_packets = self._num_packets + 1
        if number == 0:
            self._open(packet)
        elif number == 1:
            if not packet.startswith(b"OpusTags"):
                raise OggError(f"expected comments that begin with OpusTags, got {packet[:8]!r}")
        elif not packet:
            raise OggError("expected packets of at least one byte, got an empty one")
        else:
            self._num_silent = 0
            try:
                for frame in self._decoder.decode(av.Packet(packet)):
                    for resampled in self._resampler.resample(frame):
                        yield self._mixer.mix(resampled.to_ndarray())
            except FFmpegError as error:
                raise OggError(f"expected packets of Opus, got one that cannot be decoded ({error.strerror})") from None

    def _open(self, header: bytes) -> None:
        """Open the decoder for an identification header, which gives the number of samples to skip."""
        if not header.startswith(b"OpusHead") or len(header) < MIN_HEADER_BYTES:
            raise OggError(f"expected a stream that begins with OpusHead, got {header[:8]!r}")
        version = header[8]
        num_channels = header[9]
        family = header[18]
        if version > 15 or num_channels not in (1, 2) or family:
            got = f"version {version}, {num_channels} channels, mapping {family}"
            raise OggError(f"expected Opus with one or two channels, got {got}")
        self._decoder = av.CodecContext.create("libopus", "r")
        self._decoder.extradata = header
        self._decoder.sample_rate = OPUS_RATE
        self._decoder.layout = layout = "mono" if num_channels == 1 else "stereo"
        self._decoder.options = {"request_sample_fmt": "flt"}
        self._resampler = av.AudioResampler("fltp", layout, DEFAULT_RATE)
