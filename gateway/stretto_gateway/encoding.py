"""Streaming encoders for OpenAI's audio formats."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Protocol

import av
import numpy as np
from av.error import BlockingIOError
from numpy.typing import NDArray

from stretto_client.sinks import wav_header as wav_header
from stretto_gateway import g711

DEFAULT_RATE = 24_000  # Hz, assumed by OpenAI's SDKs and players for `pcm`
FULL_SCALE = 32768.0  # int16 value of a sample of 1.0
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    **g711.MEDIA_TYPES,
}
RAW = ("pcm", *g711.LAWS)  # formats without a header, whose sample rate is not in the file
# Supported sample rates of the formats that do not support all rates.
RATES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(g711.LAWS, (g711.RATE,)),
    "opus": (8_000, 12_000, 16_000, 24_000, 48_000),  # RFC 6716, section 2
    "mp3": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),  # MPEG-1, -2 and -2.5, layer III
    "aac": (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
}


class Encoder(Protocol):
    """Streaming encoder for one utterance."""

    def encode(self, pcm: NDArray[Any]) -> bytes:
        """Return the bytes that are ready after the samples `pcm`, int16 [n]."""
        ...

    def close(self) -> bytes:
        """Return the rest of the file."""
        ...


class PcmEncoder:
    """Encoder that outputs little-endian samples without a header."""

    def encode(self, pcm: NDArray[Any]) -> bytes:
        return pcm.astype("<i2", copy=False).tobytes()

    def close(self) -> bytes:
        return b""


class G711Encoder:
    """Encoder that outputs a byte of G.711 for each sample, without a header."""

    def __init__(self, law: g711.Law):
        self._law = law

    def encode(self, pcm: NDArray[Any]) -> bytes:
        return g711.encode(self._law, pcm)

    def close(self) -> bytes:
        return b""


class WavEncoder(PcmEncoder):
    """Encoder that outputs a WAV header for an unknown length, then little-endian samples."""

    def __init__(self, sample_rate: int):
        self._header = wav_header(sample_rate)

    def encode(self, pcm: NDArray[Any]) -> bytes:
        header = self._header
        self._header = b""
        return header + super().encode(pcm)


class Pipe:
    """Write-only file for FFmpeg's muxers."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def pop(self) -> bytes:
        """Remove and return all written bytes."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


# Tag which states that a model generated the audio of a file: IPTC's digital source type, for which no container has a
# standard tag. FFmpeg writes the tags as ID3 frames (TXXX) or Vorbis comments.
SYNTHETIC = {"DIGITALSOURCETYPE": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"}
NO_TAGS: Mapping[str, str] = MappingProxyType({})
TAGGED = ("mp3", "opus", "flac")  # a tag in a WAV file would move its samples, and ADTS has none
# Container, codec, bits per second, and options that keep the muxer from buffering audio or seeking.
CODECS: dict[str, tuple[str, str, int | None, dict[str, str]]] = {
    "mp3": ("mp3", "libmp3lame", 64_000, {"write_xing": "0", "id3v2_version": "3"}),
    "opus": ("ogg", "libopus", 32_000, {"page_duration": "20000"}),
    "aac": ("adts", "aac", 64_000, {}),
    "flac": ("flac", "flac", None, {}),
}


def audio_frame(pcm: NDArray[Any], sample_rate: int, position: int) -> av.AudioFrame:
    """Return samples, int16 [n], as a frame for FFmpeg; `position` is the number of samples before them."""
    frame = av.AudioFrame.from_ndarray(pcm.astype(np.int16, copy=False)[None], format="s16", layout="mono")
    frame.sample_rate = sample_rate
    frame.pts = position
    frame.time_base = Fraction(1, sample_rate)
    return frame


class FfmpegEncoder:
    """Encoder that uses FFmpeg, for the formats in CODECS."""

    def __init__(self, name: str, sample_rate: int, tags: Mapping[str, str], bit_rate: int | None):
        container, codec, usual_bit_rate, options = CODECS[name]
        bit_rate = bit_rate or usual_bit_rate
        self._rate = sample_rate
        self._num_samples = 0
        self._pipe = Pipe()
        self._container = av.open(self._pipe, "w", format=container, options=options | {"flush_packets": "1"})
        rate = {} if bit_rate is None else {"b": str(bit_rate)}
        self._stream: Any = self._container.add_stream(codec, rate=sample_rate, options=rate, layout="mono")
        if name in TAGGED:
            (self._stream if container == "ogg" else self._container).metadata.update(tags)

    @property
    def is_new(self) -> bool:
        """True until samples have been encoded."""
        return not self._num_samples

    def encode(self, pcm: NDArray[Any]) -> bytes:
        frame = audio_frame(pcm, self._rate, self._num_samples)
        self._num_samples += len(pcm)
        self._container.mux(self._stream.encode(frame))
        return self._pipe.pop()

    def close(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._pipe.pop()


def make_encoder(
    name: str, sample_rate: int, tags: Mapping[str, str] = NO_TAGS, bit_rate: int | None = None
) -> Encoder:
    """Create a streaming encoder of mono samples, in a format of MEDIA_TYPES.

    Args:
        tags: Tags of the file, for the formats in TAGGED.
        bit_rate: Bits per second of the formats in CODECS; None for the usual one.
    """
    plain: dict[str, Callable[[], Encoder]] = {
        "pcm": PcmEncoder,
        "wav": lambda: WavEncoder(sample_rate),
        "mulaw": lambda: G711Encoder("mulaw"),
        "alaw": lambda: G711Encoder("alaw"),
    }
    return plain[name]() if name in plain else FfmpegEncoder(name, sample_rate, tags, bit_rate)


def default_rate(name: str) -> int:
    """Return the sample rate in Hz of the format `name` if a request does not set it."""
    return g711.RATE if name in g711.LAWS else DEFAULT_RATE


LEAST_SPEED = 0.25
GREATEST_SPEED = 4.0
STAGES = 2  # atempo requires a tempo of at least 0.5, and above 2 it skips samples instead of blending them
BLOCKS_PER_S = 50  # fixed block size, because the filter's output depends on it
PADDING_S = 0.5  # silence at the end, to flush the filter's last windows


class TimeStretch:
    """Streaming time stretch of one utterance, with a speed from LEAST_SPEED to GREATEST_SPEED.

    `n` samples become `round(n / speed)`, at least one. The result does not depend on how the input is split into
    blocks.
    """

    def __init__(self, speed: float, sample_rate: int):
        self._speed = speed
        self._rate = sample_rate
        self._num_in = self._num_out = self._num_pushed = 0
        self._kept = np.zeros(0, np.int16)
        self._graph = av.filter.Graph()
        base = Fraction(1, sample_rate)
        source = self._graph.add_abuffer(sample_rate=sample_rate, format="s16", layout="mono", time_base=base)
        tempo = f"{speed ** (1 / STAGES):.9f}"
        stages = [self._graph.add("atempo", tempo) for _ in range(STAGES)]
        self._graph.link_nodes(source, *stages, self._graph.add("abuffersink")).configure()

    def stretch(self, pcm: NDArray[Any]) -> NDArray[Any]:
        """Add mono samples `pcm`, int16 [n], and return the mono samples that are ready, int16 [m]."""
        assert pcm.dtype == np.int16, pcm.dtype
        self._num_in += len(pcm)
        return self._run(pcm)

    def close(self) -> NDArray[Any]:
        """Return the remaining samples, int16 [n]."""
        due = max(round(self._num_in / self._speed), min(self._num_in, 1)) - self._num_out
        return self._run(np.zeros(round(PADDING_S * self._rate), np.int16))[: max(0, due)]

    def _run(self, pcm: NDArray[Any]) -> NDArray[Any]:
        """Filter all complete blocks of input, and return the output."""
        self._kept = np.concatenate([self._kept, pcm])
        size = max(1, self._rate // BLOCKS_PER_S)
        num_whole = len(self._kept) // size * size
        parts = [np.zeros(0, np.int16)]
        for block in self._kept[:num_whole].reshape(-1, size):
            frame = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
            frame.sample_rate = self._rate
            frame.pts = self._num_pushed
            frame.time_base = Fraction(1, self._rate)
            self._num_pushed += size
            self._graph.push(frame)
            parts += self._ready()
        self._kept = self._kept[num_whole:]
        stretched = np.concatenate(parts)
        self._num_out += len(stretched)
        return stretched

    def _ready(self) -> Iterator[NDArray[Any]]:
        with suppress(BlockingIOError):
            while True:
                yield self._graph.pull().to_ndarray()[0]


def stretched(pcm: NDArray[Any], sample_rate: int, speed: float) -> NDArray[Any]:
    """Return whole speech `pcm`, int16 [n], at a speed from LEAST_SPEED to GREATEST_SPEED, with the same pitch."""
    stretch = TimeStretch(min(max(speed, LEAST_SPEED), GREATEST_SPEED), sample_rate)
    return np.concatenate([stretch.stretch(pcm), stretch.close()])


class StretchedEncoder:
    """Encoder that time-stretches samples before it encodes them."""

    def __init__(self, stretch: TimeStretch, encoder: Encoder):
        self._stretch = stretch
        self._encoder = encoder

    def encode(self, pcm: NDArray[Any]) -> bytes:
        stretched = self._stretch.stretch(pcm)
        return self._encoder.encode(stretched) if len(stretched) else b""

    def flush(self) -> bytes:
        """Return the bytes that are ready after the last samples; none may follow."""
        tail = self._stretch.close()
        return self._encoder.encode(tail) if len(tail) else b""

    def close(self) -> bytes:
        return self.flush() + self._encoder.close()
