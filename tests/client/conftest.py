"""Fake Triton module, for client tests against the server's own responses."""

from tests import fakes_triton

fakes_triton.install()  # before the modules under test are imported
