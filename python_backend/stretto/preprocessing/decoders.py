"""Decoders of audio files: libsndfile, and FFmpeg (PyAV) for files that libsndfile cannot read.

Channels are mixed block by block, to save memory. Files are untrusted, so a server runs this code only in an audio
process (`audio_worker.py`), whose time and memory are limited. PyAV is imported on first use.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import soundfile

from stretto.errors import InvalidRequest
from stretto.preprocessing.mixing import Mixer

MIN_RATE_HZ = 1_000
MAX_RATE_HZ = 384_000
MAX_CHANNELS = 8
FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "CAF"})
READABLE = "wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac"
BLOCK_SAMPLES = 1 << 16  # samples per channel and decoding step
FLAC_SAMPLES = (1 << 36) - 1  # STREAMINFO bits that hold the number of samples, 0 if unknown (RFC 9639, section 8.2)
# Restrict FFmpeg to these demuxers and decoders, and to one file: no playlists, no network, no video.
DEMUXERS = "wav,w64,flac,ogg,mp3,aac,aiff,caf,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2"
CODECS = (
    "opus,vorbis,aac,alac,flac,mp3float,mp3,mp2float,mp2,amrnb,amrwb,gsm,gsm_ms,g722,g726,"
    "adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,pcm_alaw,pcm_mulaw,pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,"
    "pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be"
)
ALLOWED = frozenset(CODECS.split(","))
MAX_STREAMS = 8
FFMPEG_OPTIONS = {
    "codec_whitelist": CODECS,
    "protocol_whitelist": "none",
    "max_streams": str(MAX_STREAMS + 1),
    "probesize": "1000000",
    "analyzeduration": "1000000",
}


class _Unreadable(Exception):
    """A decoder cannot read a file, for the reason in the message."""


def decode(data: bytes, max_s: float, field: str) -> tuple[np.ndarray, int]:
    """Decode an audio file to mono samples, float32 [n], up to one decoding step beyond `max_s`, and their rate in Hz.

    Zero bytes and ID3 tags before the file are skipped. A file that is cut short is read up to the cut. If one decoder
    fails or finds no samples, the other one is tried. If both fail, raise InvalidRequest.
    """
    data = data[_first_byte(data) :]
    end = 8 + int.from_bytes(data[4:8], "little")  # end of the file, if it is a WAV file
    if data.startswith(b"RIFF") and data[end : end + 4] == b"RIFF":
        raise InvalidRequest(field, "one recording", f"two WAV files, the second one at byte {end}")
    if data.startswith(b"RF64") and not any(data[28:36]):  # no size, as written to a pipe; WAV is read to its end
        data = b"RIFF" + data[4:]
    demuxer = _demuxer(data)
    failures = list[str]()
    decoders: list[_Decoder] = [_Libsndfile(data, max_s, field), _FFmpeg(data, demuxer, max_s, field)]
    for decoder in decoders if demuxer is None else reversed(decoders):
        try:
            pcm, rate = _mixed(decoder)
            if len(pcm):
                return pcm, rate
            failures.append("")
        except _Unreadable as error:
            failures.append(str(error))
    if not failures[0]:
        raise InvalidRequest(field, "at least one sample", "none")
    raise InvalidRequest(field, f"a readable {READABLE} file", f"an error: {failures[0]}")


_Decoder = Callable[[Callable[[np.ndarray], None]], int]
"""Function that passes each block [n, C] of a file to a function, and returns the sample rate in Hz."""


def _mixed(decode_blocks: _Decoder) -> tuple[np.ndarray, int]:
    """Decode to mono samples; if channels cancel each other, decode again with other signs."""
    mixer = Mixer()
    rate = decode_blocks(mixer.add)
    if (signs := mixer.better_signs()) is not None:
        mixer = Mixer(signs)
        rate = decode_blocks(mixer.add)
    return mixer.pcm(), rate


ZEROS = re.compile(rb"\0*")
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # an MP4 or MOV file begins with one of these boxes


def _first_byte(data: bytes) -> int:
    """Return the number of bytes to skip: zeros and ID3v2 tags before the file."""
    at = 0
    while True:
        begun = at
        if data[at : at + 3] == b"ID3" and len(data) >= at + 10:
            high, mid, low, last = (byte & 0x7F for byte in data[at + 6 : at + 10])  # 7 bits in each byte
            has_footer = bool(data[at + 5] & 0x10)
            at += 10 + (high << 21 | mid << 14 | low << 7 | last) + 10 * has_footer
        first = at
        zeros = ZEROS.match(data, at)
        at = at if zeros is None else zeros.end()
        for start in range(max(first, at - 3), at + 1):  # the first bytes of a box's size may be zeros
            if data[start + 4 : start + 8] in BOXES:
                return start
        if at >= len(data):
            return 0
        if at == begun:
            return at


def _demuxer(data: bytes) -> str | None:
    """Return FFmpeg's demuxer for a file that libsndfile cannot read, or would not read to its end; otherwise None."""
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "matroska,webm"
    if data[4:8] == b"ftyp":
        return "mov,mp4,m4a,3gp,3g2,mj2"
    if data.startswith(b"fLaC") and not int.from_bytes(data[18:26]) & FLAC_SAMPLES:  # no size, as written to a pipe
        return "flac"
    if data.startswith(b"OggS") and data.count(b"OggS\0\x02") > 1:  # several recordings, one after the other
        return "ogg"
    # ADTS and MP3 begin with the same 12 bits. The layer field after them is 0 only in ADTS.
    if data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xF6 == 0xF0:
        return "aac"
    return "mp3" if _is_joined_mp3(data) else None


TAGS_BYTES = 4096  # allowance for other tags after the last frame of an MP3 file


def _is_joined_mp3(data: bytes) -> bool:
    """Return True if an MP3 file is longer than its first header declares, as after joining two files."""
    at = max(data.find(name, 0, 200) for name in (b"Xing", b"Info"))
    if data[:1] != b"\xff" or at < 0:
        return False
    flags = int.from_bytes(data[at + 4 : at + 8])
    if not flags & 2:  # its first header does not declare its size
        return False
    size_at = at + (12 if flags & 1 else 8)
    return len(data) > int.from_bytes(data[size_at : size_at + 4]) + TAGS_BYTES


class _File(BytesIO):
    """File whose position remains unchanged if a damaged header leads to a negative one, as for a real file."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:  # soundfile would print the error
            return self.tell()


@dataclass(frozen=True, slots=True)
class _Libsndfile:
    """Decoder for the formats of FORMATS. At most one sample beyond `max_s` is decoded."""

    data: bytes
    max_s: float
    field: str

    def __call__(self, add: Callable[[np.ndarray], None]) -> int:
        try:
            with soundfile.SoundFile(_File(self.data)) as file:
                if file.format not in FORMATS:
                    raise _Unreadable(f"{file.format} files are not supported")
                _check_form(self.field, file.samplerate, file.channels)
                left = int(self.max_s * file.samplerate) + 1
                while left > 0 and len(block := file.read(min(left, BLOCK_SAMPLES), dtype="float32", always_2d=True)):
                    add(block)
                    left -= len(block)
                return int(file.samplerate)
        except soundfile.LibsndfileError as error:
            raise _Unreadable(error.error_string) from error


@dataclass(frozen=True, slots=True)
class _FFmpeg:
    """Decoder for the first audio stream of a file. It stops after the first frame beyond `max_s`.

    Packets that cannot be decoded are skipped, as players do, unless they are the majority.
    """

    data: bytes
    demuxer: str | None
    max_s: float
    field: str

    def __call__(self, add: Callable[[np.ndarray], None]) -> int:
        import av

        options = FFMPEG_OPTIONS | {"format_whitelist": self.demuxer or DEMUXERS}
        try:
            reader = partial(av.open, BytesIO(self.data), "r", metadata_errors="replace")  # tags may be in any encoding
            with reader(format=self.demuxer, options=options) as container:
                return self._decode(container, add)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            if isinstance(error, InvalidRequest):
                raise
            got = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise _Unreadable(f"the file is damaged, incomplete or of another format ({got})") from error

    def _decode(self, container: Any, add: Callable[[np.ndarray], None]) -> int:
        """Pass the blocks of the first audio stream to `add`, and return its rate in Hz (0 if there are no blocks)."""
        from av import AudioResampler

        if len(container.streams) > MAX_STREAMS:
            raise InvalidRequest(self.field, f"at most {MAX_STREAMS} streams", len(container.streams))
        # `codec_whitelist` restricts only the decoders that FFmpeg itself opens, to detect the streams.
        codecs = {
            stream: stream.codec_context.name for stream in container.streams.audio if stream.codec_context is not None
        }
        stream = next((audio_stream for audio_stream, codec in codecs.items() if codec in ALLOWED), None)
        if stream is None:
            expected = "a file with an audio stream that can be decoded"
            raise InvalidRequest(self.field, expected, ", ".join(codecs.values()) or "none")
        stream.codec_context.thread_count = 1
        form = None
        rate = 0
        num_samples = 0
        to_float = AudioResampler(format="fltp")
        for frame in self._frames(container, stream):
            changed = form
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if not rate:
                rate = frame.sample_rate
                layout = frame.layout
                _check_form(self.field, rate, layout.nb_channels)
            elif changed != form:  # after joining files
                to_float = AudioResampler(format="fltp", layout=layout, rate=rate)
            for block in to_float.resample(frame):
                add(block.to_ndarray().T)
                num_samples += block.samples
            if num_samples > self.max_s * rate:
                break
        return rate

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield the decoded frames of a stream; raise FFmpegError if most packets, or all, cannot be decoded."""
        import av

        num_good = 0
        bad = list[av.FFmpegError]()
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:  # the file is cut short
                bad.append(error)
                break
            if packet is None:
                break
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                bad.append(error)
                continue
            num_good += bool(frames)
            yield from frames
        if len(bad) > num_good:
            raise bad[0]


MAX_TAG_CHARS = 200


def read_tag(data: bytes, name: str) -> str | None:
    """Return a tag of an audio file, without unprintable characters and cut to MAX_TAG_CHARS, or None.

    The tag is that of the container or else of a stream.
    """
    import av

    try:
        options = FFMPEG_OPTIONS | {"format_whitelist": DEMUXERS}
        with av.open(BytesIO(data), "r", options=options, metadata_errors="replace") as container:
            parts = [container.metadata, *(stream.metadata for stream in container.streams)]
    except (av.FFmpegError, ValueError, MemoryError):
        return None
    tag = next((value for tags in parts for key, value in tags.items() if key.lower() == name), None)
    return tag and "".join(filter(str.isprintable, tag))[:MAX_TAG_CHARS]


def _check_form(field: str, rate: int, num_channels: int) -> None:
    """Raise InvalidRequest if the rate in Hz or the number of channels is outside the limits."""
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise InvalidRequest(field, f"a rate in [{MIN_RATE_HZ}, {MAX_RATE_HZ}] Hz", rate)
    if num_channels > MAX_CHANNELS:
        raise InvalidRequest(field, f"at most {MAX_CHANNELS} channels", num_channels)
