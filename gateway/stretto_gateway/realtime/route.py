"""Route of realtime sessions; other routes build on it."""

import argparse
import os

from starlette.types import Scope

from stretto_client.console import argument_path
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.client_secrets import PREFIX, ClientSecret
from stretto_gateway.realtime.end_of_turn import read_model
from stretto_gateway.realtime.endpoints import router
from stretto_gateway.realtime.state import RealtimeOptions, RealtimeState
from stretto_gateway.routes import Route

TURN_MODEL = "STRETTO_TURN_MODEL"
PATH = "/v1/realtime"


class RealtimeRoute(Route):
    """OpenAI's realtime sessions over WebSockets, whose clients may have a client secret instead of a key."""

    position = 10
    about = f"{PATH}, OpenAI's realtime API"
    router = router

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        about = f"end-of-turn model for semantic_vad, such as Smart Turn v3 (ONNX); default: {TURN_MODEL}, or none"
        default = os.environ.get(TURN_MODEL) or None
        parser.add_argument("--turn-model", type=argument_path, metavar="FILE", default=default, help=about)

    def read_settings(self, args: argparse.Namespace) -> RealtimeOptions:
        return RealtimeOptions(turn_model=b"" if args.turn_model is None else read_model(args.turn_model))

    def make_state(self, gateway: Gateway) -> RealtimeState:
        return RealtimeState(gateway)

    def takes_secret(self, scope: Scope, key: str) -> bool:
        return bool(scope["type"] == "websocket" and scope["path"] == PATH and key.startswith(PREFIX))

    def find_secret(self, gateway: Gateway, key: str) -> ClientSecret | None:
        return gateway.of_route(RealtimeState).secrets.find(key)


ROUTE = RealtimeRoute()
