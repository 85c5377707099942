"""Operations of the codecs of published size, for the estimate of `stretto run`."""

import pytest

from benchmarks.codec_operations import COUNTED, gflop_per_s
from stretto.family.plugin import decoder_size
from tests.tiers import by_night

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["tiny", *by_night(*sorted(COUNTED.keys() - {"tiny"}))])
def test_operations_are_counted(name: str) -> None:
    assert decoder_size(name).gflop_per_s == round(gflop_per_s(name), 1), (
        f"python -m benchmarks.codec_operations {name}"
    )
