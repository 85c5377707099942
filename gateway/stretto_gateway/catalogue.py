"""What the server offers, in OpenAI's words: models, and voices with the names that its SDKs know."""

import asyncio
import re
import time
from collections.abc import Mapping

from stretto_client import ClientError, ModelProfile, SpeechClient, TaskProfile
from stretto_gateway.answers import Model, Talks
from stretto_gateway.api_error import ApiError, from_client_error, refused
from stretto_gateway.routed import RoutedClient

MAX_NAME_CHARS = 64  # of a model that is looked for by its form
REFRESH_S = 5.0  # after so long the server may be another one
# Names of models that mean whichever model is served. Of OpenAI's, every name of a family that speaks or listens: its
# SDKs' defaults change with each release.
OPENAI_MODELS = re.compile(
    r"(tts|whisper)-\d[a-z0-9-]*|gpt-[a-z0-9.-]*(audio|live|realtime|transcribe|tts|whisper)[a-z0-9.-]*"
)
# Other names that clients send unless they are configured, and the client.
MODEL_ALIASES = {
    "kokoro": "Kokoro-FastAPI's clients: wyoming-openai, Pipecat, Open WebUI's guide",
    "speaches-ai/Kokoro-82M-v1.0-ONNX": "wyoming-openai's example with Speaches",
    "Systran/faster-distil-whisper-small.en": "wyoming-openai's example with Speaches",
    "Systran/faster-whisper-small": "Speaches' own guide",
    "whisper": "LocalAI's guide",
    "tts": "LiteLLM's and LocalAI's guides",
}
# In turns what they sound like: a family's voices are taken in turns, too.
VOICE_ALIASES = (
    *("alloy", "ash", "coral", "ballad", "fable", "cedar", "marin", "echo"),
    *("nova", "onyx", "sage", "verse", "shimmer"),
)


class Catalogue:
    """The served model, asked for in the background again when it may have changed.

    client: of the server, or of several. aliases: names of models beside the built-in ones, and the family of each.
    """

    def __init__(self, client: SpeechClient | RoutedClient, aliases: Mapping[str, str]):
        self._client, self._aliases = client, aliases
        self._profile: ModelProfile | None = None
        self._asked_s = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._since = int(time.time())

    @property
    def family(self) -> str:
        """The family that anybody was told of last; '' before that."""
        return self._profile.family if self._profile else ""

    async def profile(self) -> ModelProfile:
        """What the server serves, or has served a moment ago; ApiError 503 where none answers."""
        if self._profile is None:
            self._profile = await self._ask()
        elif time.monotonic() - self._asked_s > REFRESH_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.get_running_loop().create_task(self._ask_again())
        return self._profile

    async def _ask_again(self) -> None:
        try:
            self._profile = await self._ask()
        except ApiError:  # which the next who asks is told
            self._profile = None

    async def _ask(self) -> ModelProfile:
        try:
            profile = await self._client.profile(refresh=True)
        except ClientError as error:
            raise from_client_error(error, {}) from None
        except ValueError as error:
            raise ApiError(503, str(error), code="unavailable") from None
        self._asked_s = time.monotonic()
        return profile

    async def model(self, name: str) -> ModelProfile:
        """Return the model of that name or alias, of any for an empty one; raise ApiError 404 for other names."""
        profile = await self.profile()
        if name and name != profile.family and self._aliases.get(name) != profile.family and not is_alias(name):
            raise ApiError(404, f"model: there is {profile.family!r}, and no {name[:60]!r}", "model", "model_not_found")
        return profile

    def record(self, profile: ModelProfile) -> Model:
        """The model as OpenAI's `model` object, with what more there is to tell."""
        return {
            "id": profile.family,
            "object": "model",
            "created": self._since,
            "owned_by": "stretto",
            "tasks": [task.name for task in profile.tasks],
            "conversations": [conversation(task) for task in profile.tasks if converses(task)],
            "voices": list(profile.voices),
            "sample_rate": profile.sample_rate,
            "times_words": profile.times_words,
        }


def is_alias(name: str) -> bool:
    """Return True if `name` is one that means whichever model is served."""
    return name in MODEL_ALIASES or (len(name) <= MAX_NAME_CHARS and OPENAI_MODELS.fullmatch(name) is not None)


def converses(task: TaskProfile) -> bool:
    """Whether it answers what a user says, by turns."""
    return task.answers == "user" and task.has_history


def conversation(task: TaskProfile) -> Talks:
    """What of a user's turn a task needs, and takes also; and whether its replies are spoken."""
    return {"task": task.name, "needs": list(task.needs), "also": list(task.also), "speaks": task.speaks}


def aliases(profile: ModelProfile) -> dict[str, str | None]:
    """The voice that each of OpenAI's names means; None where the family has no voices by name."""
    voices = profile.voices or (None,)
    return {name: voices[n % len(voices)] for n, name in enumerate(VOICE_ALIASES) if name not in profile.voices}


def find_voice(profile: ModelProfile, name: str | None) -> str | None:
    """The family's name of a voice, None for its own choice; ApiError where there is no such voice."""
    if name is None or name in profile.voices:
        return name
    known = aliases(profile)
    if name not in known:
        raise refused("voice", f"one of {', '.join((*profile.voices, *known))}", name)
    return known[name]


def find_task(profile: ModelProfile, names: tuple[str, ...], what: str) -> TaskProfile:
    """The first of the tasks called `names` that the model has; ApiError where it cannot do `what`."""
    found = (task for name in names if (task := profile.task(name)))
    task = next(found, None)
    if task is None:
        raise ApiError(400, f"model: {profile.family!r} does not {what}", "model", "unsupported")
    return task
