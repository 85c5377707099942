import pytest

from lab.releases.random_codecs import STATEFUL, make_stateful
from stretto.codecs.base import Stateful
from stretto.testing.codec_streams import chunks_of, random_codes, stream

LOOKAHEAD = {"espnet_dac": 7, "mimi": 0, "qwen3_12hz": 0, "qwen3_12hz_small": 0}


@pytest.mark.parametrize("name", STATEFUL)
def test_random_stateful_codec_is_audible_and_streams_exactly(name: str) -> None:
    codec = make_stateful(name)
    assert isinstance(codec.spec.streaming, Stateful)
    assert codec.spec.right_frames == LOOKAHEAD[name]
    codes = random_codes(codec, 1, 12)
    whole = stream(codec, codes, [12])
    assert whole.std() > 1e-4
    assert (stream(codec, codes, chunks_of(5, 12)) - whole).abs().max() <= 1e-5
