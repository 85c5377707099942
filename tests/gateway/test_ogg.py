"""Ogg Opus in parts of any size: the samples of the whole file, and refusals of anything else."""

import io
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto_gateway.encoding import make_encoder
from stretto_gateway.ogg import MAX_PACKET_BYTES, MAX_SILENT_PAGES, MonoMixer, OggError, OggOpusDecoder, checksum

RATE = 24_000
TONE = (np.sin(np.arange(RATE) / 9) * 9000).astype(np.int16)


def opus(pcm: np.ndarray = TONE, layout: str = "mono", gains: tuple[float, float] = (1, 1)) -> bytes:
    """Return an Ogg Opus file; in stereo, each channel has its own gain."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as output:
        stream: Any = output.add_stream("libopus", rate=RATE, layout=layout)
        channels = [pcm] if layout == "mono" else [gain * pcm for gain in gains]
        samples = np.rint(np.stack(channels, 1)).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def decode(data: bytes, size: int) -> np.ndarray:
    """Return the samples of bytes that arrive in parts of `size`."""
    decoder = OggOpusDecoder()
    parts = [pcm for at in range(0, len(data), size) for pcm in decoder.push(data[at : at + size])]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def page(body: bytes, flags: int = 0, serial: bytes = b"abcd", lacing: bytes | None = None) -> bytes:
    """Return a page with a single packet, or with segments of the sizes in `lacing`."""
    sizes = bytes([255] * (len(body) // 255) + [len(body) % 255]) if lacing is None else lacing
    head = b"OggS\0" + bytes([flags]) + bytes(8) + serial + bytes(4)
    rest = bytes([len(sizes)]) + sizes + body
    return head + checksum(head + bytes(4) + rest).to_bytes(4, "little") + rest


HEADER = page(b"OpusHead\1\1\0\0" + bytes(7), flags=2)
TAGS = page(b"OpusTags")


@pytest.mark.parametrize("size", [1, 7, 100, 10_000_000])
def test_incremental_ogg_decoding_matches_ffmpeg(size: int) -> None:
    data = opus()
    with av.open(io.BytesIO(data)) as file:
        resampler = av.AudioResampler("flt", "mono", RATE)
        whole = [each.to_ndarray()[0] for frame in file.decode(audio=0) for each in resampler.resample(frame)]
    found, expected = decode(data, size), np.concatenate(whole)
    np.testing.assert_allclose(found[: len(expected)], expected, atol=2e-4)
    assert len(expected) <= len(found) < len(expected) + RATE // 50  # the last packet is not cut


def test_stereo_is_downmixed_and_chained_stream_is_decoded() -> None:
    mono, both = decode(opus(), 999), decode(opus(layout="stereo") + opus(), 999)
    np.testing.assert_allclose(both[len(mono) :], mono, atol=1e-6)
    np.testing.assert_allclose(both[500 : len(mono)], mono[500:], atol=0.05)


@pytest.mark.parametrize("gains", [(1, -1), (-1, 0.95), (0, 1), (1, 0), (0, -1)])
def test_channels_that_cancel_or_are_silent_keep_the_level(gains: tuple[float, float]) -> None:
    mono, found = (decode(data, 999) for data in (opus(), opus(layout="stereo", gains=gains)))
    levels = [float(np.sqrt(np.square(pcm[2000:20_000]).mean())) for pcm in (mono, found)]
    assert levels[1] == pytest.approx(levels[0], rel=0.05)


def test_ordinary_stereo_is_the_mean() -> None:
    blocks = np.random.default_rng(0).normal(0, 0.1, (40, 2, 960)).astype(np.float32)
    mixer = MonoMixer()
    for block in blocks:
        assert np.array_equal(mixer.mix(block), block.mean(0))
    assert np.array_equal(mixer.mix(blocks[0][:1]), blocks[0][0])


def test_gateway_opus_encoding_round_trips() -> None:
    encoder = make_encoder("opus", RATE)
    data = b"".join(encoder.encode(part) for part in np.split(TONE, range(1920, RATE, 1920))) + encoder.close()
    found = decode(data, 300)[:RATE]
    assert np.corrcoef(found[:20_000], TONE[:20_000])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"RIFF" + bytes(99), "begins with b'OggS'"),
        (b"O\0", "begins with b'OggS'"),
        (HEADER[:4] + b"\1" + HEADER[5:], "version 0"),
        (HEADER[:-1] + b"\1", "checksum"),
        (TAGS, "one of another stream"),
        (HEADER + page(b"OpusTags", serial=b"efgh"), "one of another stream"),
        (page(b"\x80theora" + bytes(20), flags=2), "begins with OpusHead"),
        (page(b"OpusHead\1\1", flags=2), "begins with OpusHead"),
        (page(b"OpusHead\1\6\0\0" + bytes(7), flags=2), "6 channels"),
        (page(b"OpusHead\1\1\0\0" + bytes(6) + b"\1", flags=2), "mapping 1"),
        (HEADER + page(b"\0\0\0"), "begin with OpusTags"),
        (HEADER + TAGS + page(b"\xff" * 40), "cannot be decoded"),
        (HEADER + page(bytes(255 * 255), 1, lacing=b"\xff" * 255) * (MAX_PACKET_BYTES // 65_025 + 1), "a longer one"),
        (HEADER + TAGS + page(b""), "at least one byte"),
        (HEADER + TAGS + page(b"", lacing=b"") * MAX_SILENT_PAGES, "expected audio within 512 pages"),
        (HEADER * (MAX_SILENT_PAGES + 1), "expected audio within 512 pages"),
    ],
    ids=range(16),
)
def test_invalid_ogg_opus_is_refused_with_its_cause(data: bytes, message: str) -> None:
    with pytest.raises(OggError) as refused:
        decode(data, len(data))
    assert message in str(refused.value)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(0, 255), st.binary(max_size=99))
def test_random_packets_are_decoded_or_refused(packets: list[bytes], flags: int, rest: bytes) -> None:
    data = HEADER + TAGS + b"".join(page(packet, flags & ~2) for packet in packets) + rest
    try:
        found = decode(data, 50)
    except OggError:
        return
    assert np.isfinite(found).all()
