"""K-means centres are read from joblib files; other pickled code in such a file never runs."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.encoders.xeus import read_centres
from stretto.errors import CheckpointError

DATA = Path(__file__).parents[1] / "data"


def test_both_joblib_array_layouts_are_read() -> None:
    padded, plain = (read_centres(DATA / name) for name in ("km_opus_lm.mdl", "km_joblib_1.0.mdl"))
    assert padded.shape == (20, 32)
    assert padded.dtype == np.float32
    assert np.array_equal(padded, plain)
    # Value of scikit-learn's attribute.
    np.testing.assert_allclose(padded[0, :3], [0.492803, -0.26337, 0.782203], rtol=0, atol=1e-6)
    assert padded.sum() == pytest.approx(-16.001007, abs=1e-4)


class Command:
    """Pickled object that creates a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


def test_k_means_pickle_runs_no_code(tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "km.mdl"
    path.write_bytes(pickle.dumps(Command(touched)))
    with pytest.raises(CheckpointError, match="expected a k-means model with cluster_centers_"):
        read_centres(path)
    assert not touched.exists()
    pickle.loads(path.read_bytes())
    assert touched.exists(), "pickle itself would have"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "uncompressed, got UnpicklingError"),
        (b"x\x9c compressed", "uncompressed, got UnpicklingError"),
        (pickle.dumps({"cluster_centers_": 3}), "with cluster_centers_, got AttributeError"),
        ((DATA / "km_opus_lm.mdl").read_bytes()[:-200], "expected a k-means model"),
        (
            (DATA / "km_opus_lm.mdl").read_bytes()[:1500],
            "expected a k-means model with cluster_centers_, got ValueError",
        ),
    ],
    ids=["empty", "compressed", "another object", "end cut off", "cut off within the centres"],
)
def test_invalid_kmeans_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "km.mdl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_centres(path)


def test_missing_file_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.mdl: expected a k-means model"):
        read_centres(tmp_path / "none.mdl")
