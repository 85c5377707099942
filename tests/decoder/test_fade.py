"""A reply that a limit ends is faded out in a pause, alike for every division into chunks; others are not changed."""

import numpy as np
import pytest

from lab.releases.random_qwen3_codec import make_qwen3_codec
from stretto.codecs.base import Codec, CodecSpec, Stateful
from stretto.config import DecoderConfig
from stretto.decoder.reply_end import FADE_S, ended_in_pause, faded_out
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk, LMChunk, Report, last_chunks
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import chunks_of, random_codes, stream
from tests.codecs.conftest import make_codec
from tests.fakes import FakeCodec, RecordedReply

NUM_FRAMES = 21
REPORT = Report("length", 3, 1, NUM_FRAMES, 1, 1.5, 0, 0.0, None, 1.0)


def spoken(
    codec: Codec,
    codes: np.ndarray,
    sizes: list[int],
    is_cut: bool,
    form: OutputForm,
    is_aligned: bool = False,
    marker: str = "",
) -> np.ndarray:
    """Return the samples of an utterance whose frames arrive in chunks of these sizes; a size may be 0."""
    worker = DecoderWorker(codec, DecoderConfig(max_batch=4, marker=marker))
    parts = np.split(codes, np.cumsum(sizes)[:-1], axis=1)
    chunks = [LMChunk(Chunk(index, Segment.AUDIO), part) for index, part in enumerate(parts)]
    last = LMChunk(Chunk(len(parts) - 1, Segment.TAIL, is_final=True, report=REPORT, num_cut_frames=is_cut), parts[-1])
    replies = list[RecordedReply]()
    for item in [*chunks[:-1], *(last_chunks(last) if is_aligned else [last])]:
        replies.append(RecordedReply())
        found = item.codes if item.codes is not None and item.codes.shape[1] else None
        worker.push("one", item.chunk, found, replies[-1], form)
    heard = [reply.pcm for reply in replies if reply.wait().pcm is not None]
    worker.stop()
    return np.concatenate(heard)


SIZES = {"whole": [21], "one by one": [1] * 21, "ragged": [4, 8, 2, 7], "one left": [20, 1], "none left": [4, 17, 0]}


class LookingAhead(FakeCodec):
    """Codec that decodes a frame when the next one has arrived, so the last chunk may have no codes."""

    spec = CodecSpec("ahead", 8_000, 80, num_codebooks=2, codebook_size=8, streaming=Stateful(left=1, right=1))


@pytest.mark.parametrize("name", SIZES)
def test_cut_reply_fades_out_in_any_chunks(name: str) -> None:
    codec = make_codec() if SIZES[name][-1] else LookingAhead()
    codes = random_codes(codec, 1, NUM_FRAMES)
    whole = stream(codec, codes, chunks_of(NUM_FRAMES, NUM_FRAMES))[0].numpy()
    size = round(FADE_S * codec.spec.sample_rate)
    for is_aligned in (False, True):
        cut, kept = (
            spoken(codec, codes[0].numpy(), SIZES[name], is_cut, OutputForm(), is_aligned) for is_cut in (True, False)
        )
        np.testing.assert_allclose(kept, whole, atol=1e-5)
        np.testing.assert_array_equal(cut[:-size], kept[:-size])
        np.testing.assert_array_equal(cut, faded_out(kept, codec.spec.sample_rate))
        assert abs(kept[-1]) > 1e-3
        assert cut[-1] == 0


def test_codec_without_look_ahead_fades_the_last_frame() -> None:
    """The language model keeps one frame for the last chunk, because this codec decodes every frame at once."""
    codec = make_qwen3_codec("narrow")
    codes = random_codes(codec, 1, NUM_FRAMES)[0].numpy()
    one_shot = spoken(codec, codes, [NUM_FRAMES], True, OutputForm())
    for sizes in ([1] * NUM_FRAMES, [4, 8, 8, 1]):
        found = spoken(codec, codes, sizes, True, OutputForm())
        np.testing.assert_allclose(found, one_shot, atol=1e-5)
        assert found[-1] == 0


@pytest.mark.parametrize(
    "form", [OutputForm("pcm_s16le"), OutputForm("pcm_f32le", 24_000), OutputForm("pcm_s16le", 8_000)]
)
def test_fade_precedes_resampling_and_encoding(form: OutputForm) -> None:
    codec = make_codec()
    codes = random_codes(codec, 1, NUM_FRAMES)[0].numpy()
    found, one_shot = (spoken(codec, codes, sizes, True, form) for sizes in (SIZES["ragged"], SIZES["whole"]))
    assert found.dtype == one_shot.dtype == (np.int16 if form.encoding == "pcm_s16le" else np.float32)
    np.testing.assert_allclose(found, one_shot, atol=1e-5 if found.dtype == np.float32 else 1)
    peak = 32_767 if found.dtype == np.int16 else 1
    assert abs(int(found[-1]) if peak > 1 else found[-1]) < 0.01 * peak


@pytest.mark.parametrize("size", [0, 1, 2, 79, 80, 81, 16_000])
def test_fade_is_short_smooth_and_ends_at_zero(size: int) -> None:
    pcm = np.ones(size, np.float32)
    found = faded_out(pcm, 16_000)
    assert (found.shape, found.dtype) == (pcm.shape, np.float32)
    assert (found[:-80] == 1).all()
    if size:
        assert found[-1] == 0
        assert (np.diff(found) <= 0).all()
    assert (pcm == 1).all()
    if size > 80:
        assert np.abs(np.diff(found)).max() < 2 / 80


def test_fade_removes_the_click() -> None:
    """A cut at a loud sample has energy far above the tone."""
    tone = np.sin(2 * np.pi * 200 * np.arange(4_000 + 20) / 16_000).astype(np.float32)
    energy = [
        np.square(np.abs(np.fft.rfft(np.pad(pcm, 4_000)))[len(pcm) // 2 :]).sum()
        for pcm in (tone, faded_out(tone, 16_000))
    ]
    assert energy[1] < energy[0] / 100


RATE = 16_000
WORD = np.sin(np.arange(RATE) / 3).astype(np.float32)
PAUSE = np.full(1_600, 0.01, np.float32)


@pytest.mark.parametrize(
    ("parts", "num_kept"),
    [
        ([WORD], RATE),  # no pause
        ([WORD, PAUSE, WORD[:1_600]], RATE + 1_600 - 240),  # in the middle of the pause's last block
        ([WORD, PAUSE, WORD[:1_600], PAUSE, WORD[:800]], RATE + 4_800 - 240),  # the last of two pauses
        ([WORD, PAUSE, WORD[:4_800]], RATE + 6_400),  # the pause is too early
        ([WORD, PAUSE], RATE + 1_600 - 240),
        ([0 * WORD], RATE - 240),
    ],
    ids=["word", "pause", "two pauses", "early pause", "pause at the end", "silence"],
)
def test_reply_ends_in_the_last_pause_before_the_limit(parts: list[np.ndarray], num_kept: int) -> None:
    pcm = np.concatenate(parts)
    kept = ended_in_pause(pcm, 4_800, RATE)
    assert abs(len(kept) - num_kept) <= 480
    np.testing.assert_array_equal(kept[:-80], pcm[: len(kept) - 80])
    assert kept[-1] == 0


def test_pause_is_only_looked_for_in_the_last_samples() -> None:
    pcm = np.concatenate([WORD, PAUSE, WORD[:1_600]])
    np.testing.assert_array_equal(ended_in_pause(pcm, 1_500, RATE), faded_out(pcm, RATE))
    assert len(ended_in_pause(pcm[:0], 1_500, RATE)) == 0
