"""Audio files and samples become mono samples; invalid ones are refused."""

import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import READABLE, check_pcm, read_file, resample
from stretto.preprocessing.decoders import read_tag
from stretto.preprocessing.file_size import MAX_FILE_BYTES
from tests.tiers import by_night

MAX_S = 9.6


def tone(rate: int, seconds: float = 0.5, hertz: float = 200.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, container: str, **options: str) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, samples, rate, format=container, **options)
    return buffer.getvalue()


class Pipe:
    """File that cannot seek, as from a streaming recorder."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


# Files of recorders and phones: FFmpeg's muxer and encoder, and True if written to a pipe.
FFMPEG: dict[str, tuple[str, str, bool]] = {
    "WEBM": ("webm", "libopus", True),
    "M4A": ("ipod", "aac", False),
    "ALAC": ("ipod", "alac", False),
    "MP4": ("mp4", "aac", False),
    "AAC": ("adts", "aac", True),
    "STREAMED FLAC": ("flac", "flac", True),
}


def written(samples: np.ndarray, rate: int, muxer: str, *codecs: str, pipe: bool = False, **options: str) -> bytes:
    """Write samples [n, channels] to a file with a stream for each codec; video streams get one or two pictures."""
    target: Any = Pipe() if pipe else BytesIO()
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    pcm = np.rint(samples * 32_767).astype(np.int16)
    with av.open(target, "w", format=muxer, options=options) as container:
        streams: list[Any] = []
        for codec in codecs:
            is_video = codec == "mpeg4"
            form: dict[str, Any] = {"rate": 25} if is_video else {"rate": rate, "layout": layout}
            streams.append(container.add_stream(codec, **form))
            if is_video:
                streams[-1].width, streams[-1].height, streams[-1].pix_fmt = 64, 64, "yuv420p"
        for stream, codec in zip(streams, codecs, strict=True):
            frame: Any = av.VideoFrame(64, 64, "yuv420p")
            if codec != "mpeg4":
                frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout=layout)
                frame.sample_rate = rate
            frame.pts = 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return target.data if pipe else target.getvalue()


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", *FFMPEG])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 2), *by_night((8_000, 1), (44_100, 1), (48_000, 2))])
def test_audio_reads_identically_from_any_container_and_rate(container: str, rate: int, channels: int) -> None:
    if container == "WEBM" and rate == 44_100:
        rate = 24_000  # opus has no other of these
    samples = np.repeat(tone(rate)[:, None], channels, 1)
    if container in FFMPEG:
        muxer, codec, is_pipe = FFMPEG[container]
        data = written(samples, rate, muxer, codec, pipe=is_pipe)
    else:
        data = encoded(samples, rate, container)
    pcm, got_rate = read_file(data, MAX_S)
    if container == "WEBM":
        pcm, got_rate = resample(pcm, 48_000, rate), rate  # opus is decoded at 48 kHz always
    assert (pcm.ndim, pcm.dtype, got_rate) == (1, np.float32, rate)
    at_16k = resample(pcm, rate, 16_000)
    expected = tone(16_000)
    middle = slice(2_000, 6_000)  # away from edges and codec delay
    spectrum = np.abs(np.fft.rfft(at_16k[middle] * np.hanning(4_000)))
    assert spectrum.argmax() == 50  # 200 Hz in bins of 4 Hz
    assert np.std(at_16k[middle]) == pytest.approx(np.std(expected[middle]), rel=0.05)
    delay = 3 * 1024 * 16_000 / rate if container == "AAC" else 0.0  # which ADTS has no field for
    assert abs(len(at_16k) - len(expected)) <= 0.1 * len(expected) + delay


@pytest.mark.parametrize("container", ["WEBM", "M4A", "MP4"])
def test_tags_that_are_not_utf_8_are_no_damage(container: str) -> None:
    muxer, codec, is_pipe = FFMPEG[container]
    data = written(tone(16_000)[:, None], 16_000, muxer, codec, pipe=is_pipe)
    pcm, rate = read_file(data, MAX_S)
    tagged = data.replace(b"Lavf", "é©üf".encode("latin-1"))  # the name of the program
    assert tagged != data
    found, found_rate = read_file(tagged, MAX_S)
    assert (found_rate, found.tolist()) == (rate, pcm.tolist())
    tags = ("encoder", "encoder-app", "muxing_app")
    assert any((read_tag(tagged, tag) or "").startswith("\N{REPLACEMENT CHARACTER}") for tag in tags)


@pytest.mark.parametrize(
    ("num_samples", "rates", "expected"),
    [
        (44_099, (44_100, 24_000), 24_000),
        (1000, (44_100, 24_000), 545),
        (1, (44_100, 16_000), 1),
        (3, (22_050, 24_000), 4),
        (5, (24_000, 16_000), 4),
        (7919, (16_000, 24_000), 11_879),
        (7919, (48_000, 24_000), 3960),
        (7919, (24_000, 24_000), 7919),
    ],
)
def test_resampled_length_matches_librosa_and_torchaudio(
    num_samples: int, rates: tuple[int, int], expected: int
) -> None:
    """Both round the number of samples up. soxr rounds to nearest, and librosa, which calls it, appends a zero."""
    pcm = np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)
    made = resample(pcm, *rates)
    assert made.shape == (expected,)
    assert made.dtype == np.float32
    own = soxr.resample(pcm, *rates)
    assert np.array_equal(made[: len(own)], own)
    assert not made[len(own) :].any()


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_input_resampling_preserves_a_tone(rate: int) -> None:
    assert np.allclose(resample(tone(rate), rate, 16_000)[500:7_000], tone(16_000)[500:7_000], atol=2e-3)


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_file(data, MAX_S)
    return str(caught.value)


def test_oversized_audio_file_is_refused_before_decoding() -> None:
    assert refusal(bytes(100_000_000)) == f"audio: expected at most {MAX_FILE_BYTES} bytes, got 100000000 bytes"


@pytest.mark.parametrize("data", [b"RIFF", b"not audio at all" * 10, bytes(1000), b"fLaC" + bytes(100), b"OggS" * 50])
def test_non_audio_bytes_are_refused(data: bytes) -> None:
    assert refusal(data).startswith(f"audio: expected a readable {READABLE} file, got an error")


def test_empty_audio_files_are_refused() -> None:
    assert refusal(b"") == f"audio: expected the bytes of a {READABLE} file, got 0 bytes"


def test_audio_longer_than_the_limit_is_refused() -> None:
    assert refusal(encoded(tone(8_000, 9.7), 8_000, "WAV")) == "audio: expected at most 9.6 s, got more"
    read_file(encoded(tone(8_000, 9.6), 8_000, "WAV"), MAX_S)


def test_unsupported_containers_rates_and_channels_are_refused() -> None:
    expected = f"audio: expected a readable {READABLE} file, got an error: AU files are not supported"
    assert refusal(encoded(tone(8_000), 8_000, "AU")) == expected
    assert refusal(encoded(tone(8_000), 500, "WAV")) == "audio: expected a rate in [1000, 384000] Hz, got 500"
    assert refusal(encoded(np.zeros((9, 9)), 8_000, "WAV")) == "audio: expected at most 8 channels, got 9"
    assert refusal(encoded(np.zeros(0), 8_000, "WAV")) == "audio: expected at least one sample, got none"


def test_audio_track_of_a_video_file_is_read() -> None:
    pcm, rate = read_file(written(tone(16_000)[:, None], 16_000, "mp4", "mpeg4", "aac"), MAX_S)
    assert (rate, abs(len(pcm) - 8_000) < 2_100) == (16_000, True)


def test_media_file_without_audio_stream_is_refused() -> None:
    assert refusal(written(np.zeros((100, 1)), 8_000, "mp4", "mpeg4")).endswith(
        "with an audio stream that can be decoded, got none"
    )


def test_audio_file_with_too_many_streams_is_refused() -> None:
    data = written(tone(8_000)[:, None], 8_000, "matroska", *["flac"] * 20)
    assert refusal(data) == "audio: expected at most 8 streams, got 9"


@pytest.mark.parametrize("container", list(FFMPEG))
def test_endless_silence_is_decoded_only_up_to_the_limit(container: str) -> None:
    muxer, codec, is_pipe = FFMPEG[container]
    data = written(np.zeros((60 * 8_000, 1), np.float32), 8_000, muxer, codec, pipe=is_pipe)
    assert refusal(data) == "audio: expected at most 9.6 s, got more"


@pytest.mark.parametrize("container", list(FFMPEG))
def test_truncated_audio_files_are_read_or_refused(container: str) -> None:
    muxer, codec, is_pipe = FFMPEG[container]
    data = written(tone(24_000)[:, None], 24_000, muxer, codec, pipe=is_pipe)
    for num_bytes in range(1, len(data), len(data) // 40 + 1):
        with suppress(InvalidRequest):
            assert len(read_file(data[:num_bytes], MAX_S)[0]) <= 0.7 * 48_000


@pytest.mark.parametrize("head", [b"#EXTM3U\n", b"ffconcat version 1.0\n", b"v=0\r\n", b"[playlist]\n", b"<MPD>"])
def test_audio_files_cannot_reference_other_files(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "secret.wav").write_bytes(encoded(tone(8_000), 8_000, "WAV"))
    path = str(tmp_path / "secret.wav").encode()
    assert "readable" in refusal(head + b"#EXTINF:1,\nfile '" + path + b"'\nFile1=" + path + b"\n" + path)


def test_mp4_external_data_reference_is_not_followed(tmp_path: Path) -> None:
    samples = tone(8_000)[:, None]
    other = tmp_path / "other"
    data = written(samples, 8_000, "mov", "pcm_s16le")
    other.write_bytes(data)
    # The reference to the file itself becomes an alias record with a path (QuickTime File Format, data references).
    at = data.index(b"dref") - 4
    path = str(other).encode()
    alias = bytes(150) + struct.pack(">hH", 2, len(path)) + path + bytes(len(path) % 2) + struct.pack(">hh", -1, 0)
    inner = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    dref = struct.pack(">I4sII", 16 + len(inner), b"dref", 0, 1) + inner
    (size,) = struct.unpack(">I", data[at : at + 4])
    made = bytearray(data[:at] + dref + data[at + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = made.index(name) - 4
        (old,) = struct.unpack(">I", made[place : place + 4])
        made[place : place + 4] = struct.pack(">I", old + len(dref) - size)
    assert "readable" in refusal(bytes(made)) or "at least one sample" in refusal(bytes(made))


def test_nan_in_a_file_is_refused() -> None:
    data = encoded(np.array([0.0, np.nan, 0.0]), 8_000, "WAV", subtype="FLOAT")
    assert refusal(data) == "audio: expected finite samples, got NaN or infinity"


GOOD = {container: encoded(tone(8_000, 0.1), 8_000, container) for container in ("WAV", "FLAC", "OGG", "MP3")}
GOOD |= {name: written(tone(8_000, 0.1)[:, None], 8_000, *form[:2], pipe=form[2]) for name, form in FFMPEG.items()}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255)), max_size=8))
def test_damaged_audio_bytes_are_read_or_refused(container: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD[container])
    for position, byte in damage:
        data[position % len(data)] = byte
    try:
        pcm, _ = read_file(bytes(data), MAX_S)
    except InvalidRequest:
        return
    assert np.isfinite(pcm).all()


@pytest.mark.parametrize(
    ("pcm", "rate", "message"),
    [
        (tone(8_000), None, "sample_rate: expected the rate of pcm_in in Hz, got none"),
        (tone(8_000), 0, "sample_rate: expected a rate in [1000, 384000] Hz, got 0"),
        (tone(8_000), -8_000, "sample_rate: expected a rate in [1000, 384000] Hz, got -8000"),
        (tone(8_000), 400_000, "sample_rate: expected a rate in [1000, 384000] Hz, got 400000"),
        (np.zeros(0, np.float32), 8_000, "pcm_in: expected at least one sample, got none"),
        (np.zeros((2, 9), np.float32), 8_000, "pcm_in: expected mono samples [n] float32, got [2, 9] float32"),
        (np.zeros(9, np.int16), 8_000, "pcm_in: expected mono samples [n] float32, got [9] int16"),
        (np.array([0, np.nan], np.float32), 8_000, "pcm_in: expected finite samples, got NaN or infinity"),
        (np.array([0, np.inf], np.float32), 8_000, "pcm_in: expected finite samples, got NaN or infinity"),
        (np.array([32_000], np.float32), 8_000, "pcm_in: expected samples in [-1, 1], got a peak of 32000"),
        (np.zeros(80_000, np.float32), 8_000, "pcm_in: expected at most 9.6 s, got 10.0 s"),
    ],
)
def test_invalid_samples_are_refused(pcm: np.ndarray, rate: int | None, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_pcm(pcm, rate, MAX_S)
    assert str(caught.value) == message
