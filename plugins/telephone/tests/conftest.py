"""Fixtures of the gateway's tests."""

from tests.gateway.conftest import start
from tests.gateway.test_model_servers import several

__all__ = ["several", "start"]
