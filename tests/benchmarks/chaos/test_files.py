"""Large files of the load."""

import pytest

from benchmarks.chaos.files import FILES, REFUSED
from stretto.errors import InvalidRequest
from stretto.preprocessing.audio import read_file
from stretto.preprocessing.file_size import MAX_FILE_BYTES

WHY_REFUSED = {"long": "at most 9.6 s", "format": "Format not recognised", "unsound": "Format"}


@pytest.mark.parametrize("kind", FILES)
def test_large_audio_files_are_read_or_refused_as_declared(kind: str) -> None:
    data = FILES[kind]()
    assert 18_900_000 < len(data) <= MAX_FILE_BYTES
    if kind not in REFUSED:
        assert len(read_file(data, 9.6)[0]) > 0
        return
    with pytest.raises(InvalidRequest, match=WHY_REFUSED[kind]):
        read_file(data, 9.6)
