"""HTTP application, which combines all routes.

The routes for models and health checks, and the exception handlers, are in this module.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib.metadata import version
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from stretto_gateway import (
    adapters,
    chat,
    page,
    pronunciations,
    speech,
    speech_batch,
    speech_records,
    transcription,
    verification,
    voice_file,
    voice_preview,
    voices,
)
from stretto_gateway.answers import (
    ERRORS,
    TEXT,
    ApiError,
    Described,
    Health,
    KeyUsage,
    Model,
    Models,
    SpeechModels,
    described,
    shown,
)
from stretto_gateway.config import GatewayConfig
from stretto_gateway.fields import error_message, field_path
from stretto_gateway.file_names import accept_extended_names
from stretto_gateway.gateway import Gateway
from stretto_gateway.guard import Guard
from stretto_gateway.model_server import READY_S, ModelServer, Servers, served_model
from stretto_gateway.response_headers import ResponseHeader
from stretto_gateway.routed import RoutedClient
from stretto_gateway.routes import GROUP, error_response, installed_routes

LOG = logging.getLogger("stretto_gateway")
ABOUT = "OpenAI's audio API for a Stretto server. There are also WebSockets, which OpenAPI cannot describe: "
VERSION = version("stretto")  # read once, because this parses the metadata of the package
OPEN: dict[str, Any] = {"security": []}  # no key needed
router = APIRouter()


def make_app(config: GatewayConfig, make_client: Callable[[], RoutedClient] | None = None) -> FastAPI:
    """Create the FastAPI application, which connects to the server at startup.

    Args:
        make_client: Function that creates a client for several servers at startup; None to use the configured server.
    """
    accept_extended_names()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.gateway = gateway = Gateway(config, make_client() if make_client else None)
        try:
            await gateway.start()
            yield
        finally:
            await gateway.close()

    # No documentation pages from FastAPI, because they would load scripts from other hosts.
    about: dict[str, Any] = {"title": "Stretto", "version": VERSION, "description": description()}
    # The guard removes slashes at the end of a path, so there are no redirects.
    options: dict[str, Any] = {"docs_url": None, "redoc_url": None, "redirect_slashes": False}
    app = (KeyedApp if config.keys else FastAPI)(**about, **options, lifespan=lifespan, routes=all_routes())
    app.state.is_draining = False
    app.add_exception_handler(ApiError, api_error_response)
    app.add_exception_handler(RequestValidationError, validation_error_response)
    app.add_exception_handler(HTTPException, http_error_response)
    app.add_exception_handler(Exception, failure_response)
    app.add_middleware(Guard, config=config)
    if config.cors_origins:
        # Outside the guard, because a browser's preflight request has no key.
        methods = ("GET", "POST", "PUT", "DELETE")
        origins = config.cors_origins
        cors_options: dict[str, Any] = {
            "allow_methods": methods,
            "allow_headers": ("*",),
            "expose_headers": (*ResponseHeader,),
        }
        app.add_middleware(CORSMiddleware, allow_origins=origins, **cors_options)
    return app


class KeyedApp(FastAPI):
    """Application whose OpenAPI schema declares the API keys, which the guard checks."""

    def openapi(self) -> dict[str, Any]:
        """Return the schema, which FastAPI creates at the first call."""
        schema = super().openapi()
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        return schema


def description() -> str:
    """Return the description of the API, with the WebSockets of all routes."""
    *others, last = (route.about for route in installed_routes() if route.about)
    return f"{ABOUT}{'; '.join([*others, f'and {last}'])}."


@cache
def all_routes() -> list[BaseRoute]:
    """Return every application's routes, which no setting changes; raise ValueError if two share a path and method."""
    every = APIRouter()
    first = (speech, speech_batch, speech_records, transcription, verification, chat)
    added = [route.router for route in installed_routes()]
    last = (voice_preview, voice_file, voices, pronunciations, adapters, page)
    for one in (*(module.router for module in first), *added, *(module.router for module in last), router):
        every.include_router(one, responses=ERRORS)
    add_health(every)
    refuse_twice(every.routes)
    answer_head(every)
    return every.routes


def refuse_twice(routes: list[BaseRoute]) -> None:
    """Raise ValueError if two endpoints have the same path and method, because one of them would never be called.

    Endpoints may have the same path and method if their routes have different classes, which may also check headers.
    """
    taken = set[tuple[str, str, type[BaseRoute]]]()
    for route in routes:
        path = getattr(route, "path", "")
        for method in getattr(route, "methods", None) or ("WEBSOCKET",):
            endpoint = (path, method, type(route))
            if endpoint in taken:
                raise ValueError(f"{GROUP}: expected one endpoint for {method} {path}, got two")
            taken.add(endpoint)


def add_health(every: APIRouter) -> None:
    """Add the routes for health checks and metrics."""
    plain: dict[str, Any] = {"response_class": Response}
    not_ready: Described = {
        503: {"description": "The server cannot generate speech now", "content": {"text/plain": TEXT}}
    }
    is_live = described("The gateway is running", "text/plain")
    is_ready = described("The server can generate speech", "text/plain")
    every.add_api_route("/health/live", live, responses=is_live, openapi_extra=OPEN, **plain)
    every.add_api_route("/health/ready", ready, responses=is_ready | not_ready, openapi_extra=OPEN, **plain)
    every.add_api_route("/api/build_info", ready, include_in_schema=False, **plain)  # Unmute reads this path
    has_figures = described("Figures", "text/plain", "application/openmetrics-text")
    every.add_api_route("/metrics", figures, responses=has_figures | ERRORS, **plain)


def answer_head(every: APIRouter) -> None:
    """Answer HEAD on all GET routes; uvicorn omits the body."""
    for route in list(every.routes):
        if isinstance(route, APIRoute) and "GET" in route.methods:
            options: dict[str, Any] = {"response_class": route.response_class, "include_in_schema": False}
            options["route_class_override"] = type(route)
            every.add_api_route(route.path, route.endpoint, methods=["HEAD"], **options)


@router.get(
    "/health",
    responses={503: {"description": "The server cannot generate speech now", "model": Health}},
    openapi_extra=OPEN,
)
async def health(request: Request, response: Response) -> Health:
    """Return the model and its configuration with status 200 if the server accepts requests; otherwise 503."""
    if not await is_ready(request.app):
        response.status_code = 503
        return {"status": "not ready"}
    servers: Servers = request.app.state.gateway.servers
    if not servers.are_named:
        return cast(Health, {"status": "ready"} | await served_model(servers.all[0].client))
    statuses = await asyncio.gather(*map(server_health, servers.all))
    return {
        "status": "ready",
        "servers": {server.name: status for server, status in zip(servers.all, statuses, strict=True)},
    }


async def server_health(server: ModelServer) -> Health:
    """Return the readiness of one of several servers, and its model."""
    if not server.is_up:
        return {"status": "not ready"}
    return cast(Health, {"status": "ready"} | await served_model(server.client))


@router.get("/v1/usage")
async def get_usage(request: Request) -> KeyUsage:
    """Return the use of the gateway by the caller's key, or by everybody if there are no keys."""
    gateway: Gateway = request.app.state.gateway
    return gateway.metrics.usage.current.record()


@router.get("/v1/models")
async def list_models(request: Request) -> Models:
    """List the models of all servers that accept requests. OpenAI's model names select one of them, too."""
    gateway: Gateway = request.app.state.gateway
    catalogues = [server.catalogue for server in await gateway.servers.up()]
    models = [model for catalogue in catalogues for model in await catalogue.records()]
    return {"object": "list", "data": models, "calls": gateway.takes_calls}


@router.get("/v1/audio/models")
async def list_speech_models(request: Request) -> SpeechModels:
    """List the models in the format that Open WebUI expects for speech models."""
    gateway: Gateway = request.app.state.gateway
    catalogues = [server.catalogue for server in await gateway.servers.up()]
    names = [catalogue.name_of(await catalogue.profile()) for catalogue in catalogues]
    return {"object": "list", "models": [{"id": name, "name": name} for name in names]}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, request: Request) -> Model:
    """Return the model with that name or alias."""
    gateway: Gateway = await request.app.state.gateway.for_model(name)
    return gateway.catalogue.record(await gateway.catalogue.model(name))


async def live() -> Response:
    """Return 200 while the gateway is running."""
    return PlainTextResponse("")


async def ready(request: Request) -> Response:
    """Return 200 if the server accepts requests. Otherwise, or during shutdown, return 503."""
    return PlainTextResponse("", 200 if await is_ready(request.app) else 503)


async def is_ready(app: FastAPI) -> bool:
    """Return True if the server accepts requests and the gateway is not shutting down."""
    if not app.state.is_draining:
        servers: Servers = app.state.gateway.servers
        with suppress(ApiError, TimeoutError):
            async with asyncio.timeout(READY_S):
                return bool(await servers.up() if servers.are_named else await servers.all[0].client.ready())
    return False


async def figures(request: Request) -> Response:
    """Return the gateway's metrics, in the Prometheus text format or as OpenMetrics."""
    gateway: Gateway = request.app.state.gateway
    page, media_type = gateway.metrics.page(request.headers.get("accept", ""))
    return Response(page, media_type=media_type)


async def api_error_response(request: Request, error: Exception) -> Response:
    """Return the response to an ApiError."""
    assert isinstance(error, ApiError)
    return error_response(request.scope, error)


async def validation_error_response(request: Request, error: Exception) -> Response:
    """Return the response to a request that violates the schema."""
    assert isinstance(error, RequestValidationError)
    return error_response(request.scope, schema_error(request, error))


def schema_error(request: Request, error: RequestValidationError) -> ApiError:
    """Return the error for the first field that violates the schema, or for a missing content type."""
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON")
    source, *names = first["loc"]
    is_in_url = source in ("query", "path")
    param = str(names[0]) if is_in_url else field_path(first | {"loc": names}, error.body) or None
    media_type = request.headers.get("content-type", "")
    if param is None and isinstance(error.body, bytes) and "json" not in media_type.lower():
        message = f"the body: expected the header Content-Type: application/json, got {shown(media_type or None)}"
        return ApiError(400, message)
    message = f"{param or 'the body'}: {error_message(first)}"
    return ApiError(400, message, param, "missing" if first["type"] == "missing" else "invalid_value")


async def http_error_response(request: Request, error: Exception) -> Response:
    """Return the response to a framework error: an unknown path or method, or an unreadable body."""
    assert isinstance(error, HTTPException)
    return error_response(request.scope, ApiError(error.status_code, str(error.detail)))


async def failure_response(request: Request, error: Exception) -> Response:
    """Return the response to an internal error, and log its traceback under the request's id."""
    request_id = request.state.request_id
    LOG.error("%s failed", request_id, exc_info=error)
    response = error_response(request.scope, ApiError(500, f"internal error {request_id}", code=request_id))
    # this response bypasses the guard, which adds the header to all others
    response.headers[ResponseHeader.REQUEST_ID] = request_id
    return response
