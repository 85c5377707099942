"""Fixtures of the gateway's tests."""

from tests.gateway.conftest import start

__all__ = ["start"]
