"""Routes: endpoints that installed packages add to the gateway.

A package registers an object of a class derived from `Route` as an entry point in the group `stretto_gateway.routes`.
The gateway itself imports no route, and its own are registered in the same way.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Scope

from stretto_gateway.answers import ApiError

GROUP = "stretto_gateway.routes"
OWN = "stretto"  # package of the gateway's own routes


class Secret(Protocol):
    """Short-lived key, which a route has created."""

    @property
    def owner(self) -> str:
        """Id of the caller whose API key has created this key; sessions opened with it count as that caller's."""
        ...


@dataclass(frozen=True)
class RouteSettings:
    """Settings of a route, from the command line; without arguments, the defaults."""

    @property
    def files_per_session(self) -> int:
        """Number of files that a session opens in addition to its connection."""
        return 0


class RouteState:
    """State of a route in a running gateway.

    Attributes:
        takes_calls: True if browsers can call the model, so that web pages offer it.
    """

    takes_calls = False

    async def start(self) -> None:
        """Start work that does not belong to a request, such as listening on a separate port."""

    async def close(self) -> None:
        """Wait for the work in progress, within the gateway's `drain_s`, and release the state's resources."""


class Route:
    """Endpoints, with the parts of the gateway that they need.

    The argument `gateway` of the methods is a `stretto_gateway.gateway.Gateway`. That module imports this one.

    Attributes:
        position: Position among all routes in the API reference and in --help; the last state closes first.
        about: Paths and purpose of the WebSockets, which OpenAPI cannot describe; empty for none.
        key_headers: Names of headers in which clients send a key. A request has each of them at most once.
    """

    position = 100
    about = ""
    key_headers: tuple[bytes, ...] = ()
    router: APIRouter

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the command-line options of the route."""

    def read_settings(self, args: argparse.Namespace) -> RouteSettings | None:
        """Return the settings from the command line; raise ValueError or OSError if they are invalid."""
        return None

    def make_state(self, gateway: Any) -> RouteState | None:
        """Return the state of the route for a gateway, inside the event loop."""
        return None

    def find_key(self, scope: Scope, headers: Mapping[bytes, str]) -> str:
        """Return the key in a request without `Authorization` header; empty if the request is for another route."""
        return ""

    def authenticates(self, scope: Scope, authorization: str) -> bool:
        """Return True for a request that its endpoint authenticates itself, so that no key is needed."""
        return False

    def takes_secret(self, scope: Scope, key: str) -> bool:
        """Return True if a key has the form of a secret, and the request is for an endpoint that takes secrets."""
        return False

    def error_response(self, scope: Scope, error: ApiError) -> Response | None:
        """Return the response to a failed request in the form of another API; None for OpenAI's form."""
        return None

    def find_secret(self, gateway: Any, key: str) -> Secret | None:
        """Return the secret with this value; None if it is unknown or has expired."""
        return None


@cache
def installed_routes() -> tuple[Route, ...]:
    """Return the routes of all installed packages, by their positions.

    ValueError is raised if one cannot be imported, several have the same name, or there is none.
    """
    points = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    routes: dict[str, Route] = {}
    for (name, value), point in sorted(points.items()):
        if name in routes:
            values = ", ".join(other for registered, other in sorted(points) if registered == name)
            raise ValueError(f"{GROUP}: {name}: expected one installed route, got {values}")
        try:
            routes[name] = point.load()
        except Exception as error:  # any error that an import may raise
            raise ValueError(f"{GROUP}: {name}: cannot import {value}: {error!r}") from error
    if not routes:
        expected = f"those of the package {OWN}"
        raise ValueError(f"{GROUP}: expected {expected}, got none; it is out of date (run scripts/setup.sh)")
    return tuple(sorted(routes.values(), key=lambda route: route.position))


def error_response(scope: Scope, error: ApiError) -> Response:
    """Return the response to a failed request, in the form of the API to which the request belongs."""
    responses = (route.error_response(scope, error) for route in installed_routes())
    return next((response for response in responses if response is not None), None) or error.response()
