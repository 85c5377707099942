"""`GET /v1/audio/voices/{name}/preview`: the same sentence in any voice."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stretto_gateway.catalogue import speaks
from stretto_gateway.fields import validated
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech import ANSWERS, create_speech
from stretto_gateway.speech_request import AudioFormat, SpeechRequest

SENTENCE = "Good morning. It is twenty past nine, and the garden door is open."
SEED = 1
router = APIRouter()


@router.get("/v1/audio/voices/{name:path}/preview", response_class=Response, responses=ANSWERS)
async def preview_voice(
    name: str, request: Request, model: str = "tts-1", response_format: AudioFormat = "mp3"
) -> Response:
    """Speak a fixed sentence in a voice with a fixed seed, as `POST /v1/audio/speech` does."""
    gateway: Gateway = await request.app.state.gateway.for_model(model, speaks)
    profile = await gateway.catalogue.model(model)
    fields = {"voice": name, "model": model, "input": SENTENCE, "seed": SEED, "response_format": response_format}
    if profile.requires_language:
        fields["language"] = "english" if "english" in profile.languages else profile.languages[0]
    return await create_speech(validated(SpeechRequest, fields), request)
