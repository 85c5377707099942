"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`: a model's LoRA adapters, for holders of an admin key."""

from contextlib import suppress

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from stretto_client import ClientError, RequestRefused, SpeechClient
from stretto_gateway.answers import ApiError, described, from_client_error, refused
from stretto_gateway.catalogue import is_alias
from stretto_gateway.fields import Body, Text
from stretto_gateway.gateway import Gateway

router = APIRouter()
DONE = described("A confirmation", "text/plain")


class NamedAdapter(Body):
    """Name of an adapter.

    Attributes:
        model: Name of the model, if the gateway serves several.
    """

    lora_name: Text
    model: Text = ""


class AdapterFolder(NamedAdapter):
    """Name of an adapter with its folder on the server's host."""

    lora_path: Text
    load_inplace: bool = False


@router.post("/v1/load_lora_adapter", response_class=Response, responses=DONE)
async def load_lora_adapter(body: AdapterFolder, request: Request) -> Response:
    """Load an adapter into all servers of a model; requests may name it from then on."""
    gateway: Gateway = await request.app.state.gateway.for_model(body.model)
    name = body.lora_name
    if body.load_inplace:
        raise refused("load_inplace", "false (unload the adapter first)", True)
    if is_alias(name) or name == gateway.catalogue.name_of(await gateway.catalogue.profile()):
        raise refused("lora_name", "a name that is not one of the model's", name)
    load = {"action": "load", "name": name, "path": body.lora_path}
    unload = {"action": "unload", "name": name}
    async with gateway.changing_adapters:
        loaded = list[SpeechClient]()
        for client in gateway.each_client:
            try:
                gateway.catalogue.adapters = await client.adapters(load)
            except ClientError as error:
                for earlier in loaded:
                    with suppress(ClientError):  # the first error is the one to report
                        gateway.catalogue.adapters = await earlier.adapters(unload)
                raise from_client_error(error, {}) from None
            loaded.append(client)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.post("/v1/unload_lora_adapter", response_class=Response, responses=DONE)
async def unload_lora_adapter(body: NamedAdapter, request: Request) -> Response:
    """Unload an adapter from all servers of a model; replies in progress keep using it."""
    gateway: Gateway = await request.app.state.gateway.for_model(body.model)
    unload = {"action": "unload", "name": body.lora_name}
    refusals: list[RequestRefused] = []
    async with gateway.changing_adapters:
        clients = gateway.each_client
        for client in clients:
            try:
                gateway.catalogue.adapters = await client.adapters(unload)
            except RequestRefused as error:  # an earlier attempt may have unloaded it from some of the servers
                refusals.append(error)
            except ClientError as error:
                raise from_client_error(error, {}) from None
    if len(refusals) == len(clients):
        refusal = from_client_error(refusals[0], {})
        is_unknown = refusal.param == "lora_name"
        raise ApiError(404 if is_unknown else refusal.status, refusal.message, refusal.param, refusal.code)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
