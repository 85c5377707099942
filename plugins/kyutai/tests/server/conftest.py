"""Fixtures of the server's tests: a real server with the bundled model."""

from tests.server.conftest import _server, server

__all__ = ["_server", "server"]
