"""Helpers for test suites whose tests are parametrised by the fields of a case."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

Parts = Mapping[str, Sequence[Any]]
"""Values of the tests' arguments, by name, in the same order in all processes; none for parts that a case lacks."""


def by_night(*values: Any) -> list[Any]:
    """Return values of a test's argument with the mark `nightly`."""
    return [pytest.param(value, marks=pytest.mark.nightly) for value in values]


def leave_out_absent(suite: type, parts: Parts) -> None:
    """Remove the inherited tests for parts that a suite's case lacks."""
    absent = {name for name, values in parts.items() if not values}
    for name, test in inspect.getmembers(suite, inspect.isfunction):
        if name.startswith("test_") and name not in vars(suite) and absent & {*inspect.signature(test).parameters}:
            setattr(suite, name, None)


def parametrize(metafunc: pytest.Metafunc, parts: Parts) -> None:
    """Parametrise a test by those parts of the case that are its arguments."""
    for name, values in parts.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values)
