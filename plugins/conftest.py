"""Fixtures and hooks of the core's tests of families and engines, for the tests of plug-ins."""

from tests.codecs.conftest import one_thread
from tests.engine.conftest import pytest_unconfigure
from tests.families.conftest import copied, refuses

__all__ = ["copied", "one_thread", "pytest_unconfigure", "refuses"]
