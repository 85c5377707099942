"""Before a download, the names and shapes in the headers of safetensors files are compared with the converter's."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from stretto.releases.build import check
from stretto.releases.catalogue import ReleaseEntry, RepositoryFiles
from stretto.releases.install import HEADED, WEIGHTS
from stretto.releases.store import View
from stretto.weights.loading import TensorMismatch
from tests.family_releases import LAYOUTS
from tests.tiers import by_night

BY_DAY = "Qwen/Qwen3-TTS-12Hz-1.7B-Base"
LARGE_BYTES = 60_000  # all files of weights, but no file of a voice
OTHERS = {*WEIGHTS} - {HEADED}


def ignore(num_bytes: int) -> None:
    """Take a report of progress."""


def header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file without its metadata."""
    data = path.read_bytes()
    record: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    record.pop("__metadata__", None)
    return record


def headed(folder: Path, edits: dict[str, list[int]]) -> int:
    """Replace all safetensors files by files with only their headers; return how many tensors were edited.

    Args:
        folder: Folder of the release.
        edits: New shapes by tensor.
    """
    view = View(folder, ReleaseEntry("a", "b", RepositoryFiles("c/d", ("*",)), ()), ["c/d"])
    view.folders[0] = folder
    num_edited = 0
    for path in [each for each in folder.rglob("*.safetensors") if each.stat().st_size > LARGE_BYTES]:
        tensors, size = header(path), path.stat().st_size
        for name in tensors.keys() & edits.keys():
            tensors[name]["shape"] = edits[name]
            num_edited += 1
        path.unlink()
        view.add_header(0, str(path.relative_to(folder)), tensors)
        assert path.stat().st_size >= size - 100_000, "as large as the published file, apart from its metadata"
        assert path.stat().st_blocks * 512 <= 1_000_000
    return num_edited


@pytest.mark.parametrize("name", [BY_DAY, *by_night(*(layout for layout in LAYOUTS if layout != BY_DAY))])
def test_headers_of_a_right_release_are_accepted_and_those_of_another_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    words = LAYOUTS[name].command(folder)
    weights = [each for each in folder.rglob("*") if each.suffix in WEIGHTS]
    if any(each.suffix in OTHERS for each in weights):
        pytest.skip("the release has weights without a header, so it is not checked")
    original = tmp_path / "original"
    shutil.copytree(folder, original)
    headed(folder, {})
    check(ignore, words)
    model = Path(words[words.index("--model") + 1])
    first = min(model.glob("*.safetensors") if model.is_dir() else model.parent.glob("*.safetensors"))
    tensors = header(first)
    tied = ("embed", "head")  # dropped, or compared by their numbers
    compared = [name for name in tensors if not any(word in name for word in tied)]
    odd = max(compared, key=lambda name: math.prod(tensors[name]["shape"]))
    shutil.rmtree(folder)
    shutil.copytree(original, folder)
    assert headed(folder, {odd: [1, *tensors[odd]["shape"]]})
    with pytest.raises(TensorMismatch, match="wrong shape") if LAYOUTS[name].is_checked else nullcontext():
        check(ignore, words)
