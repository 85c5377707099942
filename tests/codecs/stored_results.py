"""Stored results of authors' code, computed in float64. Only every n-th number of a result is stored, in float32."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from lab.authors.reply_fixture import digest


class StoredResults:
    """The results in a file, for comparison with ours."""

    def __init__(self, path: Path, every: int, inputs: Mapping[str, np.ndarray | Tensor]) -> None:
        """Read the file.

        Args:
            path: File that `write_or_check` has written.
            every: Distance of the stored numbers.
            inputs: The inputs and weights of the tests, which must be those of the results.
        """
        self._made, self._every = np.load(path), every
        is_same = self._made["inputs"] == digest(inputs)
        assert is_same, f"{path}: other numbers are drawn now than when it was written; write it again (authors.py)"

    def error(self, name: str, ours: Tensor) -> float:
        """Return the largest difference between our result and the stored one, relative to the level."""
        wanted, found = self._made[name], thinned(ours, self._every)
        assert wanted[0] == found[0], f"{name}: {found[0]} numbers instead of {wanted[0]}"
        return float(np.abs(found[1:] - wanted[1:]).max() / np.sqrt(np.square(wanted[1:]).mean()))

    def stored(self, name: str) -> np.ndarray:
        """Return the number of numbers in a result, and every n-th of them."""
        return self._made[name]


def write_or_check(
    path: Path, every: int, results: Mapping[str, Tensor], inputs: Mapping[str, np.ndarray | Tensor]
) -> None:
    """Write results to a file, or assert that they equal those in it if the command line has `--check`."""
    if "--check" not in sys.argv:
        np.savez_compressed(
            path, **{name: thinned(each, every) for name, each in results.items()}, inputs=digest(inputs)
        )
        return
    known = StoredResults(path, every, inputs)
    errors = {name: known.error(name, each) for name, each in results.items()}
    with np.load(path) as stored:
        assert {*stored} == {*errors, "inputs"}, f"{path}: expected {sorted(errors)}, got {sorted(stored)}"
    assert all(each < 1e-6 for each in errors.values()), f"{path}: {errors}"


def thinned(values: Tensor, every: int) -> np.ndarray:
    """Return the count of numbers and every n-th of them, float32."""
    return np.append(values.numel(), values.reshape(-1)[::every].numpy()).astype(np.float32)
