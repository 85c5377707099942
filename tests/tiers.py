"""Parameters that only scripts/nightly.sh runs."""

from collections.abc import Iterable
from typing import Any

import pytest


def by_night(*values: Any, ids: Iterable[str | None] = ()) -> list[Any]:
    """Return parameters with the mark `nightly`; a tuple has the arguments of one test."""
    names = [*ids, *[None] * len(values)]
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), id=name, marks=pytest.mark.nightly)
        for value, name in zip(values, names, strict=False)
    ]


# The two ways of scheduling; only the first by day, if both should give the same.
ASYNC_BY_DAY = [pytest.param(True, id="async"), *by_night(False, ids=["sync"])]
SYNC_BY_DAY = [pytest.param(False, id="sync"), *by_night(True, ids=["async"])]
