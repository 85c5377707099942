"""`GET /v1/models` and `GET /v1/audio/voices`: what can be asked for."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from stretto_gateway.catalogue import aliases
from stretto_gateway.gateway import Gateway

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The model that the server has loaded; OpenAI's names of models mean it, too."""
    gateway: Gateway = request.app.state.gateway
    return {"object": "list", "data": [gateway.catalogue.record(await gateway.catalogue.profile())]}


@router.get("/v1/models/{name}")
async def retrieve_model(name: str, request: Request) -> dict[str, Any]:
    """The model of that name."""
    gateway: Gateway = request.app.state.gateway
    return gateway.catalogue.record(await gateway.catalogue.model(name))


@router.get("/v1/audio/voices")
async def list_voices(request: Request) -> dict[str, Any]:
    """The voices of the model, and which of them OpenAI's names mean."""
    gateway: Gateway = request.app.state.gateway
    profile = await gateway.catalogue.profile()
    return {"object": "list", "voices": list(profile.voices), "aliases": aliases(profile)}
