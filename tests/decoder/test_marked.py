"""Samples pass the marker between the codec and the client's format: alike in any chunks, and never on a GPU only."""

import numpy as np
import pytest

from stretto.codecs.base import Codec
from stretto.config import DecoderConfig
from stretto.decoder.reply_end import FADE_S
from stretto.decoder.worker import DecoderWorker
from stretto.marking.perth import MARKER
from stretto.records.chunk import Chunk
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment
from stretto.testing.codec_streams import random_codes
from tests.codecs.conftest import make_codec
from tests.decoder.test_fade import NUM_FRAMES, SIZES, spoken
from tests.fakes import RecordedReply

FORMS = [OutputForm(), OutputForm("pcm_s16le"), OutputForm("pcm_f32le", 24_000), OutputForm("pcm_s16le", 8_000)]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return make_codec()


@pytest.fixture(scope="module")
def codes(codec: Codec) -> np.ndarray:
    return random_codes(codec, 1, NUM_FRAMES)[0].numpy()


def test_marker_filters_the_samples_of_the_codec(codec: Codec, codes: np.ndarray) -> None:
    plain = spoken(codec, codes, SIZES["whole"], False, OutputForm())
    expected = MARKER.stream(codec.spec.sample_rate, codec.spec.samples_per_frame).push(plain, True)
    found = spoken(codec, codes, SIZES["whole"], False, OutputForm(), marker="perth")
    np.testing.assert_array_equal(found, np.clip(expected, -1, 1))
    assert np.abs(found - plain).max() > 0.01


@pytest.mark.parametrize("name", ["one by one", "ragged", "none left"])
@pytest.mark.parametrize("form", FORMS, ids=["float", "int16", "float at 24 kHz", "int16 at 8 kHz"])
def test_marked_reply_is_the_same_in_any_chunks(codec: Codec, codes: np.ndarray, name: str, form: OutputForm) -> None:
    whole = spoken(codec, codes, SIZES["whole"], False, form, marker="perth")
    found = spoken(codec, codes, SIZES[name], False, form, marker="perth")
    np.testing.assert_allclose(found, whole, atol=1 if found.dtype == np.int16 else 1e-5)


def test_cut_reply_ends_in_silence_after_the_marker(codec: Codec, codes: np.ndarray) -> None:
    kept, cut = (
        spoken(codec, codes, SIZES["ragged"], is_cut, OutputForm(), marker="perth") for is_cut in (False, True)
    )
    size = round(FADE_S * codec.spec.sample_rate)
    np.testing.assert_array_equal(cut[:-size], kept[:-size])
    assert cut[-1] == 0


@pytest.mark.parametrize("marker", ["", "perth"])
def test_report_names_the_marker_and_marked_samples_do_not_stay_on_the_gpu(
    codec: Codec, codes: np.ndarray, marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of the codec's samples on the GPU is that of unmarked ones."""
    monkeypatch.setattr("stretto.decoder.loop.LaunchedBatch.addresses", lambda batch: [4096] * len(batch.jobs))
    worker, reply, seen = DecoderWorker(codec, DecoderConfig(marker=marker)), RecordedReply(), list[int]()
    worker.push("one", Chunk(0, Segment.AUDIO, is_final=True), codes, reply, on_device=seen.append)
    event = reply.wait().event
    worker.stop()
    assert event is not None
    assert event["report"].get("marker", "") == event.get("marker", "") == marker
    assert seen == ([] if marker else [4096])
