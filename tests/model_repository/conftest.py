"""Fixtures that replace Triton's module with a fake for every adapter test."""

import pytest

from tests import fakes_triton

fakes_triton.install()  # before the modules under test are imported


@pytest.fixture(autouse=True)
def _fresh_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes_triton.install()
    # A stub closes all sockets that it has inherited. Here that would be the sockets of other tests.
    monkeypatch.setattr("stretto.triton_io.stub.close_inherited_sockets", lambda: None)
    # It would collect and keep the objects of the whole suite.
    monkeypatch.setattr("stretto.triton_io.stub.keep_loaded_objects", lambda: None)
