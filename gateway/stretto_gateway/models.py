"""`GET /v1/models`: the served model."""

from fastapi import APIRouter
from starlette.requests import Request

from stretto_gateway.answers import Model, Models, SpeechModels
from stretto_gateway.gateway import Gateway

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Models:
    """List the loaded model; OpenAI's model names select it, too."""
    gateway: Gateway = request.app.state.gateway
    return {"object": "list", "data": [gateway.catalogue.record(await gateway.catalogue.profile())]}


@router.get("/v1/audio/models")
async def list_speech_models(request: Request) -> SpeechModels:
    """List the loaded model, in the form in which Open WebUI asks for speech models."""
    gateway: Gateway = request.app.state.gateway
    family = (await gateway.catalogue.profile()).family
    return {"object": "list", "models": [{"id": family, "name": family}]}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, request: Request) -> Model:
    """Return the model with that name or alias."""
    gateway: Gateway = request.app.state.gateway
    return gateway.catalogue.record(await gateway.catalogue.model(name))
