"""Files that libsndfile cannot read, or reads only in part, are read by FFmpeg, and damaged ones up to the damage."""

import struct
from functools import cache
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pytest
import soundfile

from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import READABLE, read_file, resample
from tests.preprocessing.test_audio import FFMPEG, written
from tests.tiers import by_night

RATE, MAX_S = 16_000, 30.0
TIME = np.arange(RATE) / RATE
# A chirp whose level changes, so that a shift, a cut or another rate are noticed.
CHIRP = (0.4 * np.sin(2 * np.pi * (200 + 300 * TIME) * TIME) * (0.6 + 0.4 * np.sin(6 * np.pi * TIME))).astype(
    np.float32
)

SUBTYPES = {
    "WAV": (
        "PCM_16",
        "PCM_U8",
        "PCM_24",
        "PCM_32",
        "FLOAT",
        "DOUBLE",
        "ULAW",
        "ALAW",
        "IMA_ADPCM",
        "MS_ADPCM",
        "GSM610",
    ),
    "AIFF": ("PCM_16", "PCM_S8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM"),
    "CAF": ("PCM_16", "PCM_24", "FLOAT", "ULAW", "ALAW", "ALAC_16", "ALAC_24"),
    "WAVEX": ("PCM_16",),
    "RF64": ("PCM_16",),
    "W64": ("PCM_16",),
    "FLAC": ("PCM_16",),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_LAYER_III",),
}
# FFmpeg's muxer and encoder, in addition to those of test_audio.py.
MUXED = {
    "OGG FLAC": ("ogg", "flac"),
    "OGA": ("oga", "flac"),
    "CAF ALAC": ("caf", "alac"),
    "CAF IMA": ("caf", "adpcm_ima_qt"),
}


@cache
def file_of(name: str, seconds: int = 1) -> bytes:
    """Return CHIRP, repeated and with some noise if it is longer than 1 s, as a file.

    Args:
        name: `CONTAINER SUBTYPE` of libsndfile, or a name of MUXED or FFMPEG.
        seconds: Duration of the recording.
    """
    pcm = np.tile(CHIRP, seconds)
    if seconds > 1:  # noise makes compressed files large enough to be cut
        pcm += np.random.default_rng(0).normal(0, 0.05, len(pcm)).astype(np.float32)
    if name in FFMPEG or name in MUXED:
        muxer, codec, is_pipe = FFMPEG.get(name) or (*MUXED[name], False)
        rate = 48_000 if codec == "libopus" else RATE
        return written(resample(pcm, RATE, rate)[:, None], rate, muxer, codec, pipe=is_pipe)
    container, subtype = name.split()
    buffer = BytesIO()
    soundfile.write(buffer, pcm, RATE, format=container, subtype=subtype)
    return buffer.getvalue()


NAMES = [f"{container} {subtype}" for container, subtypes in SUBTYPES.items() for subtype in subtypes]
EVERY = [*NAMES, *MUXED, *FFMPEG]
# By day one file for libsndfile, one for its MP3 decoder, and two for FFmpeg.
BY_DAY = ("WAV PCM_16", "MP3 MPEG_LAYER_III", "OGG FLAC", "AAC")


def others_by_night(names: list[str]) -> list[Any]:
    return [*(name for name in names if name in BY_DAY), *by_night(*(name for name in names if name not in BY_DAY))]


def similarity(data: bytes) -> tuple[float, float]:
    """Return the length of a file's audio in seconds, and the share of CHIRP found at one place in it."""
    pcm, rate = read_file(data, MAX_S)
    found = resample(pcm, rate, RATE)
    size = 4 * RATE
    spectra = [np.fft.rfft(each[:size], size) for each in (found, CHIRP)]
    products = np.fft.irfft(spectra[0] * spectra[1].conj())
    return len(found) / RATE, float(products.max() / np.dot(CHIRP, CHIRP))


def assert_read(data: bytes) -> None:
    seconds, share = similarity(data)
    assert (seconds, share) == (pytest.approx(1, abs=0.15), pytest.approx(1, abs=0.06))


def id3(num_bytes: int, flags: int = 0) -> bytes:
    """Return an ID3v2.3 tag whose frames take `num_bytes` bytes, for example a picture."""
    size = bytes(num_bytes >> shift & 0x7F for shift in (21, 14, 7, 0))
    return (
        b"ID3\3\0" + bytes([flags]) + size + bytes(num_bytes) + (b"3DI\3\0" + bytes([flags]) + size) * (flags == 0x10)
    )


JUNK: dict[str, bytes] = {
    "700 zeros": bytes(700),
    "one zero": bytes(1),
    "5000 zeros": bytes(5000),
    "tag": id3(200),
    "tag with a picture": id3(60_000),
    "tag with a footer": id3(200, 0x10),
    "tag and zeros": id3(200) + bytes(300),
    "zeros and tag": bytes(64) + id3(100),
    "two tags": id3(200) + id3(70),
}


@pytest.mark.parametrize("name", others_by_night(EVERY))
def test_junk_before_a_file_is_skipped(name: str) -> None:
    plain = read_file(file_of(name), MAX_S)
    for junk in JUNK.values():
        pcm, rate = read_file(junk + file_of(name), MAX_S)
        assert rate == plain[1]
        assert np.array_equal(pcm, plain[0])


@pytest.mark.parametrize(
    "junk", [b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n\r\n", b"\xef\xbb\xbf", b"\r\n" * 50]
)
def test_other_junk_before_an_mp3_is_skipped(junk: bytes) -> None:
    assert_read(junk + file_of("MP3 MPEG_LAYER_III"))


def test_rf64_without_sizes_is_read() -> None:
    """A recorder that writes to a pipe leaves the sizes of the ds64 chunk at zero."""
    data = bytearray(file_of("RF64 PCM_16"))
    data[20:44] = bytes(24)
    assert_read(bytes(data))


def with_sizes(data: bytes, whole: int | None, samples: int | None) -> bytes:
    """Return a RIFF, AIFF or CAF file with other sizes of the file and of its samples; None leaves one unchanged."""
    changed = bytearray(data)
    if data.startswith(b"caff"):
        at = data.index(b"data") + 4
        changed[at : at + 8] = struct.pack(">q", -1 if samples == UNKNOWN else samples or 0)
        return bytes(changed)
    order, name = (">I", b"SSND") if data.startswith(b"FORM") else ("<I", b"data")
    for at, size in ((4, whole), (data.index(name) + 4, samples)):
        if size is not None:
            changed[at : at + 4] = struct.pack(order, size)
    return bytes(changed)


UNKNOWN = 0xFFFFFFFF
SIZES = [(0, 0), (None, 0), (0, None), (UNKNOWN, UNKNOWN), (0x7FFFFFFF, 0x7FFFFF00)]


SIZED = [name for name in NAMES if name.split()[0] in ("WAV", "WAVEX", "AIFF", "CAF")]
SIZED.remove("CAF ALAC_24")  # its packets cannot be found without the size


@pytest.mark.parametrize("name", others_by_night(SIZED))
def test_streamed_files_whose_sizes_are_unknown_are_read(name: str) -> None:
    """A recorder that writes to a pipe, or is ended early, leaves the sizes at zero or at their maximum."""
    for whole, samples in SIZES:
        assert_read(with_sizes(file_of(name), whole, samples))


@pytest.mark.parametrize("name", others_by_night(EVERY))
def test_files_are_read_whole(name: str) -> None:
    assert_read(file_of(name))


def test_ogg_flac_equals_flac() -> None:
    plain, of_ogg = (read_file(file_of(name), MAX_S)[0] for name in ("FLAC PCM_16", "OGG FLAC"))
    assert np.abs(plain - of_ogg).max() <= 1 / 32_768


CUT = ["WAV PCM_16", "AIFF PCM_16", "CAF PCM_16", "FLAC PCM_16", "OGG VORBIS", "OGG OPUS", "MP3 MPEG_LAYER_III"]
CUT += ["OGG FLAC", "WEBM", "AAC", "STREAMED FLAC"]


@pytest.mark.parametrize("name", others_by_night(CUT))
def test_a_file_that_is_cut_short_is_read_up_to_the_cut(name: str) -> None:
    data = file_of(name, 8)
    whole = len(read_file(data, MAX_S)[0])
    for share in (0.5, 0.77):
        found = len(read_file(data[: int(share * len(data))], MAX_S)[0]) / whole
        assert share - 0.3 < found < share + 0.1


@pytest.mark.slow
def test_joined_recordings_are_read_to_the_end() -> None:
    """Such MP3 and Ogg files declare the length of the first recording."""
    for name in ("MP3 MPEG_LAYER_III", "OGG VORBIS", "OGG FLAC", "AAC", "WEBM", "STREAMED FLAC"):
        data = file_of(name, 8)
        first, both = (len(read_file(each, MAX_S)[0]) for each in (data, data * 2))
        assert both == pytest.approx(2 * first, rel=0.02), name


def test_joined_recordings_of_different_rates_are_read() -> None:
    other = written(resample(CHIRP, RATE, 24_000)[:, None], 24_000, "adts", "aac")
    pcm, rate = read_file(file_of("AAC") + other, MAX_S)
    assert (rate, len(pcm) / rate) == (RATE, pytest.approx(2, abs=0.3))


def test_second_wav_file_is_not_dropped_silently() -> None:
    data = file_of("WAV PCM_16")
    expected = f"audio: expected one recording, got two WAV files, the second one at byte {len(data)}"
    assert refusal(data * 2) == expected


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_file(data, MAX_S)
    return str(caught.value)


def test_damaged_file_is_refused_in_plain_words() -> None:
    """The first 110 bytes of a recording contain no sound."""
    expected = (
        f"audio: expected a readable {READABLE} file, got an error: the file is damaged, incomplete or of another"
    )
    for name in ("WEBM", "M4A", "AAC"):
        assert refusal(file_of(name)[:110]).startswith(expected)
    assert refusal(file_of("WAV PCM_16")[:44]) == "audio: expected at least one sample, got none"


@pytest.mark.parametrize(
    ("muxer", "codec", "expected"),
    [
        ("flv", "aac", f"audio: expected a readable {READABLE} file"),
        ("avi", "pcm_s16le", f"audio: expected a readable {READABLE} file"),
        ("mpegts", "aac", f"audio: expected a readable {READABLE} file"),
        ("matroska", "ac3", "audio: expected a file with an audio stream that can be decoded, got ac3"),
    ],
)
def test_other_demuxers_and_decoders_are_not_used(muxer: str, codec: str, expected: str) -> None:
    pcm = np.tile(CHIRP, 3)[:44_100]
    assert refusal(written(pcm[:, None], 44_100, muxer, codec)).startswith(expected)


def damaged(data: bytes, num_damaged: int, out_of: int) -> bytes:
    """Return an ADTS file of which `num_damaged` of each `out_of` frames contain noise."""
    noise, found, at, number = np.random.default_rng(0), bytearray(data), 0, 0
    while at < len(data):
        length = int.from_bytes(data[at + 3 : at + 6]) >> 5 & 0x1FFF
        if number % out_of >= out_of - num_damaged:
            found[at + 7 : at + length] = noise.bytes(length - 7)
        at, number = at + length, number + 1
    return bytes(found)


def test_damaged_packets_are_skipped_unless_they_are_the_majority() -> None:
    data = file_of("AAC", 8)
    assert len(read_file(damaged(data, 1, 10), MAX_S)[0]) / RATE == pytest.approx(7.6, abs=0.6)
    assert "the file is damaged" in refusal(damaged(data, 9, 10))


def test_random_bytes_are_refused() -> None:
    noise = np.random.default_rng(0)
    heads = (b"", b"ID3", b"\xff\xfb", b"OggS", b"RIFF", b"caff", b"FORM", bytes(8))
    for head, size in product(heads, (16, 300, 20_000)):
        assert "audio: expected" in refusal(head + noise.bytes(size))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CAF ALAC_16", "FLAC PCM_16", "AIFF PCM_S8"])
def test_endless_zeros_are_decoded_only_up_to_the_limit(name: str) -> None:
    container, subtype = name.split()
    buffer = BytesIO()
    soundfile.write(buffer, np.zeros((600 * 8_000, 2), np.int16), 8_000, format=container, subtype=subtype)
    assert refusal(buffer.getvalue()) == f"audio: expected at most {MAX_S:g} s, got more"
