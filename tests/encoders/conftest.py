"""The codecs' fixtures, for encoders as large as they are."""

from tests.codecs.conftest import one_thread  # noqa: F401
