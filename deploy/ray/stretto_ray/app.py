"""The application: `serve run stretto_ray.app:build`, with the fields of Settings as `name=value`."""

import shlex
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from starlette.types import ASGIApp, Receive, Scope, Send

from stretto_gateway.app import make_app
from stretto_gateway.command import read_keys
from stretto_gateway.config import GatewayConfig, Limits
from stretto_gateway.routed import RoutedClient
from stretto_ray.leasing import leasing
from stretto_ray.replica import SpeechServer
from stretto_ray.router import AffinityRouter
from stretto_ray.scaling import policy

SERVER = "SpeechServer"
INGRESS = "SpeechGateway"
FAILURES = (RayError, RayServeException)


class Settings(BaseModel):
    """Settings of the application.

    Attributes:
        command: Command that starts a server, in a separate environment.
        gpus: GPUs per server; several with tensor parallelism.
        cpus: CPUs per server.
        streams: Average utterances per server above which another server is started.
        max_streams: Maximum utterances per server.
        free: Number of utterances below which a server keeps its conversations even if others have fewer.
        drain_s: Seconds that utterances have to finish when their server stops.
        upscale_s: Seconds of higher demand before a server is added.
        downscale_s: Seconds of lower demand before a server is removed.
        version: Version; a new value replaces the servers one by one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str = "stretto serve"
    gpus: float = 1
    cpus: float = 4
    min_servers: int = Field(default=1, ge=1)
    max_servers: int = Field(default=16, ge=1)
    streams: float = Field(default=47, gt=0)
    max_streams: int = Field(default=128, ge=1)
    free: int = Field(default=27, ge=1)
    gateways: int = Field(default=2, ge=1)
    drain_s: float = Field(default=60, gt=0)
    upscale_s: float = Field(default=10, ge=0)
    downscale_s: float = Field(default=900, ge=0)
    version: str = "1"


class WithState:
    """Wrapper that adds the ASGI scope's `state`, which uvicorn provides and Ray's proxy does not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})
        await self._app(scope, receive, send)


def build(arguments: dict[str, Any]) -> Application:
    """Return the application of gateways and servers, for `serve run` and `serve deploy`."""
    settings = Settings(**arguments)

    def gateway() -> ASGIApp:
        name = serve.get_replica_context().app_name
        config = GatewayConfig("", keys=read_keys(None), limits=Limits())
        choose = leasing(lambda: serve.get_deployment_handle(SERVER, name), FAILURES)
        return WithState(make_app(config, lambda: RoutedClient(choose)))

    ingress = serve.deployment(serve.ingress(gateway)()).options(
        name=INGRESS,
        num_replicas=settings.gateways,
        max_surge_percent=100,  # new gateways accept requests before old ones are stopped
        max_ongoing_requests=Limits().max_connections,
        graceful_shutdown_timeout_s=settings.drain_s + 10,
        ray_actor_options={"num_cpus": 1},
    )
    return ingress.bind(servers(settings).bind(shlex.split(settings.command), settings.drain_s, settings.version))


def servers(settings: Settings) -> Any:
    return serve.deployment(SpeechServer).options(
        name=SERVER,
        max_ongoing_requests=settings.max_streams,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=2 * settings.drain_s + 20,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=AffinityRouter,
            request_router_kwargs={"free": settings.free},
            request_routing_stats_period_s=1,
            request_routing_stats_timeout_s=5,
        ),
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_servers,
            max_replicas=settings.max_servers,
            target_ongoing_requests=settings.streams,
            upscale_delay_s=settings.upscale_s,
            downscale_delay_s=settings.downscale_s,
            look_back_period_s=5,
            metrics_interval_s=1,
            policy=AutoscalingPolicy(policy_function=policy),
        ),
    )
