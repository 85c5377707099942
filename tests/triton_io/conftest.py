"""Fixtures that replace Triton's module with a fake for every I/O test."""

import pytest

from tests import fakes_triton

fakes_triton.install()  # before the modules under test are imported


@pytest.fixture(autouse=True)
def _fresh_fakes() -> None:
    fakes_triton.install()
