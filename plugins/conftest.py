"""Fixtures and hooks of the core's tests of families and engines, for the tests of plug-ins."""

from tests.engine.conftest import pytest_unconfigure
from tests.families.conftest import copied, refuses

__all__ = ["copied", "pytest_unconfigure", "refuses"]
