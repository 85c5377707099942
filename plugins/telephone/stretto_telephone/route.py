"""Route of telephone calls, which are realtime sessions."""

import argparse
import os

from starlette.types import Scope

from stretto_gateway.outgoing import web_url
from stretto_gateway.routes import Route
from stretto_telephone.endpoints import TelephoneOptions, router

WEBHOOK = "STRETTO_CALL_WEBHOOK"
TWILIO_TOKEN = "STRETTO_TWILIO_TOKEN"
PATH = "/v1/twilio"


class TelephoneRoute(Route):
    """Route for Twilio's media streams. A request signature or a key in the first message may authenticate a call."""

    position = 30
    about = f"{PATH}, Twilio's media streams"
    router = router

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        about = (
            f"address that receives the turns of telephone calls and answers with text; default: {WEBHOOK}, or none; "
            f"{TWILIO_TOKEN} is Twilio's auth token, for calls whose requests it signs"
        )
        default = os.environ.get(WEBHOOK, "")
        parser.add_argument("--call-webhook", type=web_address, metavar="URL", default=default, help=about)

    def read_settings(self, args: argparse.Namespace) -> TelephoneOptions:
        return TelephoneOptions(args.call_webhook, os.environ.get(TWILIO_TOKEN, "").strip())

    def authenticates(self, scope: Scope, authorization: str) -> bool:
        return bool(scope["type"] == "websocket" and scope["path"] == PATH and not authorization)


def web_address(text: str) -> str:
    """Return a checked URL (an argparse type). An empty argument stays empty."""
    try:
        return str(web_url(text)) if text else ""
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None


ROUTE = TelephoneRoute()
