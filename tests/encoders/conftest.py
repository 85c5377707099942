"""Fixtures that encoder tests share with codec tests."""

from tests.codecs.conftest import one_thread  # noqa: F401
