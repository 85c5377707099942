"""What a client wants of the waveform survives the way to the decoder, and makes sense."""

import pytest
from stretto.records.delivery import Delivery, OutputForm
from stretto.streams.chunking import ChunkPolicy


def test_a_record_brings_everything_back() -> None:
    delivery = Delivery(OutputForm("pcm_s16le", 8000), ChunkPolicy(2, 50, 0.3, 12.5, 10), with_codes=True)
    assert Delivery.from_record(delivery.to_record()) == delivery


@pytest.mark.parametrize(("encoding", "rate", "what"), [("mp3", None, "encoding"), ("pcm_f32le", 10, "sample_rate")])
def test_a_form_that_nobody_can_make_is_refused(encoding: str, rate: int | None, what: str) -> None:
    with pytest.raises(ValueError, match=f"^{what} must be"):
        OutputForm(encoding, rate)
