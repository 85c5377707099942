"""Time that `stretto run` counts for the codec of each kind of release."""

import pytest

from stretto.family.plugin import decoder_size
from stretto.releases.catalogue import find
from stretto.releases.fit import speed_line


@pytest.mark.parametrize(("name", "size"), [("chatterbox", "s3gen"), ("chatterbox-turbo", "s3gen_meanflow")])
def test_codec_of_a_release_has_its_own_size(name: str, size: str) -> None:
    entry = find(name)
    assert entry is not None
    assert f"codec {decoder_size(size).gflop_per_s / 100:.1f} s" in str(speed_line(entry, 0, 1e10, 1e11))
