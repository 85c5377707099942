"""Operations of the codecs of published size, for the estimate of `stretto run`."""

import pytest

from benchmarks.codec_operations import MEANFLOW, gflop_per_s
from benchmarks.decoder_memory import CHUNKS
from stretto.codecs.decoder_sizes import GFLOP_PER_S
from tests.tiers import by_night

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["tiny", *by_night(*sorted({*CHUNKS, MEANFLOW} - {"tiny"}))])
def test_operations_are_counted(name: str) -> None:
    assert GFLOP_PER_S[name] == round(gflop_per_s(name), 1), f"python -m benchmarks.codec_operations {name}"


def test_every_codec_has_operations() -> None:
    assert GFLOP_PER_S.keys() == {*CHUNKS, MEANFLOW}
