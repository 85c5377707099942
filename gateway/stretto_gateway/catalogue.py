"""What the server offers, in OpenAI's words: models, and voices with the names that its SDKs know."""

import asyncio
import time

from stretto_client import ClientError, ModelProfile, SpeechClient, TaskProfile
from stretto_gateway.answers import Model, Talks
from stretto_gateway.api_error import ApiError, from_client_error, refused
from stretto_gateway.routed import RoutedClient

REFRESH_S = 5.0  # after so long the server may be another one
MODEL_ALIASES = (
    *("tts-1", "tts-1-hd", "gpt-4o-mini-tts"),
    *("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"),
    *("gpt-audio", "gpt-audio-mini", "gpt-4o-audio-preview"),
    *("gpt-realtime", "gpt-realtime-mini", "gpt-4o-realtime-preview", "gpt-realtime-whisper"),
)
# In turns what they sound like: a family's voices are taken in turns, too.
VOICE_ALIASES = (
    *("alloy", "ash", "coral", "ballad", "fable", "cedar", "marin", "echo"),
    *("nova", "onyx", "sage", "verse", "shimmer"),
)


class Catalogue:
    """Asks the server what it is, and again when that may have changed, for which nobody waits."""

    def __init__(self, client: SpeechClient | RoutedClient):
        self._client = client
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
        """The model of that name, or of one of OpenAI's names; ApiError 404 for others."""
        profile = await self.profile()
        if name not in (profile.family, *MODEL_ALIASES):
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
