"""Command line for scripts that generate test fixtures from reference implementations.

When imported, this module imports only the standard library and numpy, because the scripts also run in the
environments of these implementations.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Made = TypeVar("Made")
Replies = list[dict[str, Any]]


def run(
    description: str | None,
    make: Callable[[], Made],
    write: Callable[[Path, Made], None],
    compare: Callable[[Path, Made], None],
) -> None:
    """Run the command line `fixture [--check]`, which writes the fixture or compares it with new replies.

    Args:
        compare: Function that raises AssertionError if a file differs from the replies.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixture", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the stored replies without writing anything")
    args = parser.parse_args()
    made = make()
    (compare if args.check else write)(args.fixture, made)


def run_arrays(description: str | None, make: Callable[[], dict[str, Any]], tolerance: float) -> None:
    """Run the command line for an `.npz` fixture of arrays by name.

    Floats may differ by `tolerance`, because processors round differently. Other values must be equal.
    """

    def write(fixture: Path, made: dict[str, Any]) -> None:
        np.savez_compressed(fixture, **made)

    def compare(fixture: Path, made: dict[str, Any]) -> None:
        with np.load(fixture) as known:
            assert set(known) == set(made), f"{fixture}: expected {sorted(made)}, got {sorted(known)}"
            for name, value in made.items():
                message = f"{fixture}: {name}"
                if np.asarray(value).dtype.kind == "f":
                    np.testing.assert_allclose(known[name], value, rtol=0, atol=tolerance, err_msg=message)
                else:
                    np.testing.assert_array_equal(known[name], value, err_msg=message)

    run(description, make, write, compare)


def digest(inputs: Mapping[str, Any]) -> str:
    """Return a hash of the names, types and bits of arrays or tensors, on which a fixture depends."""
    found = hashlib.sha256()
    for name, values in sorted(inputs.items()):
        array = np.ascontiguousarray(values)
        found.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def stored_arrays(fixture: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays of an `.npz` fixture; fail if `inputs` are not those it was made from."""
    arrays = dict(np.load(fixture))
    assert arrays.pop("inputs") == digest(inputs), f"{fixture}: its releases have changed; write it again"
    return arrays


def compute_in_float64() -> None:
    """Make torch use float64 for float32, because steps in float32 make results depend on the processor."""
    import torch

    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def equal_in(*names: str) -> Callable[..., None]:
    """Return a function that compares these fields of each reply in a JSON fixture with a new reply.

    In a fixture for several models, the replies are stored under the model's name, the function's third argument.
    """

    def compare(fixture: Path, made: Replies, model: str = "") -> None:
        record = json.loads(fixture.read_text())
        known = (record[model] if model else record)["replies"]
        assert len(made) == len(known), f"{fixture}: expected {len(known)} replies, got {len(made)}"
        for at, (reply, there) in enumerate(zip(made, known, strict=True)):
            for name in names:
                assert reply[name] == there[name], f"{fixture}: reply {at} differs in {name}"

    return compare
