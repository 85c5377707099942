"""What these tests hold the client to of the server's own answers runs on the stand-in for Triton's module."""

from tests import fakes_triton

fakes_triton.install()  # before the modules under test are imported
