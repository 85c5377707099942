"""The served model, and the voices that a request may name: the model's, a caller's own, and aliases."""

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from stretto_client import ClientError, ModelProfile, RecordedVoice, SpeechClient, TaskProfile
from stretto_contract.normal_forms import normalized
from stretto_contract.schema import expected_voices
from stretto_gateway.answers import SERVER, ApiError, Model, Talks, from_client_error, refused
from stretto_gateway.routed import RoutedClient
from stretto_gateway.turns import FILES
from stretto_gateway.voice_store import ID, StoredVoice, VoiceStore

DUPLEX = "duplex"  # task of models that read audio while they speak
MAX_NAME_CHARS = 64  # maximum length of a name to match against the pattern
REFRESH_S = 5.0  # age after which the profile is refreshed: the server may have been replaced
MAX_NAMED = 4  # number of a caller's own voices that an error lists
MAX_FAILED = 3  # consecutive failed refreshes after which the profile is dropped
# Names that select whichever model is served. All OpenAI speech and audio models match, because the defaults of its
# SDKs change with each release.
OPENAI_MODELS = re.compile(
    r"(tts|whisper)-\d[a-z0-9-]*|gpt-[a-z0-9.-]*(audio|live|realtime|transcribe|tts|whisper)[a-z0-9.-]*"
)
# Other default model names, and the clients that use them.
MODEL_ALIASES = {
    "kokoro": "Kokoro-FastAPI's clients: wyoming-openai, Pipecat, Open WebUI's guide",
    "speaches-ai/Kokoro-82M-v1.0-ONNX": "wyoming-openai's example with Speaches",
    "Systran/faster-distil-whisper-small.en": "wyoming-openai's example with Speaches",
    "Systran/faster-whisper-small": "Speaches' own guide",
    "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice": "tts-bench, and vLLM-Omni's examples",
    "whisper": "LocalAI's guide",
    "tts": "LiteLLM's and LocalAI's guides",
}
# Preset voices of OpenAI, Qwen3-TTS and Kokoro, ordered so that contrasting voices alternate, as in the families'
# lists.
VOICE_ALIASES = (
    *("alloy", "ash", "coral", "ballad", "fable", "cedar", "marin", "echo"),
    *("nova", "onyx", "sage", "verse", "shimmer"),
    *("ryan", "vivian", "uncle_fu", "serena", "aiden", "ono_anna", "dylan", "sohee", "eric"),
    *("af_heart", "am_adam", "af_bella", "am_michael", "af_sky"),
)


class Catalogue:
    """Cached profile of the served model, refreshed in the background.

    Args:
        aliases: Additional model names, each mapped to the family to which it refers, or to the name of a server.
        name: Name of the model in requests; empty for that of its family.
        lists_adapters: True to ask the server for its LoRA adapters, too.
    """

    def __init__(
        self,
        client: SpeechClient | RoutedClient,
        aliases: Mapping[str, str],
        name: str = "",
        lists_adapters: bool = False,
    ):
        self.adapters: Sequence[str] = ()
        self._lists_adapters = lists_adapters
        self._listed_s: float | None = None
        self._client = client
        self._aliases = aliases
        self._name = name
        self._profile: ModelProfile | None = None
        self._asked_s = 0.0
        self._num_failed = 0
        self._asking: asyncio.Task[None] | None = None
        self._since = int(time.time())

    @property
    def family(self) -> str:
        """Family in the last known profile; empty if no profile is known yet."""
        return self._profile.family if self._profile else ""

    @property
    def known(self) -> ModelProfile | None:
        """Last known profile; None if no profile is known yet."""
        return self._profile

    @property
    def label(self) -> str:
        """Name of the model in metrics; the name of its family if it has none."""
        return self._name or self.family

    def name_of(self, profile: ModelProfile) -> str:
        """Return the model's name, which requests may use."""
        return self._name or profile.family

    async def refresh(self) -> None:
        """Replace the profile by the server's current one; raise ApiError if the server does not respond."""
        self._profile = await self._ask()

    async def profile(self) -> ModelProfile:
        """Return the last known profile, and refresh it in the background if it is old.

        It raises ApiError if no profile is known and no server responds.
        """
        if self._profile is None:
            self._profile = await self._ask()
        elif time.monotonic() - self._asked_s > REFRESH_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.get_running_loop().create_task(self._ask_again())
        return self._profile

    async def _ask_again(self) -> None:
        try:
            self._profile = await self._ask()
        except ApiError:
            self._asked_s = time.monotonic()
            self._num_failed += 1
            if self._num_failed >= MAX_FAILED:  # the next request will query the server itself and receive the error
                self._profile = None

    async def _ask(self) -> ModelProfile:
        SERVER.set(self._name)
        try:
            profile = await self._client.profile(refresh=True)
        except ClientError as error:
            raise from_client_error(error, {}) from None
        except ValueError as error:
            raise ApiError(503, str(error), code="unavailable") from None
        self._asked_s = time.monotonic()
        self._num_failed = 0
        return profile

    async def model(self, name: str) -> ModelProfile:
        """Return the profile if `name` is empty, an alias, or the model's name; otherwise raise ApiError 404."""
        profile = await self.profile()
        names = (self._name, profile.family)
        if name and name not in names and self._aliases.get(name) not in names and not is_alias(name):
            expected = repr(self.name_of(profile))
            raise ApiError(404, f"model: expected {expected}, got {name[:60]!r}", "model", "model_not_found")
        return profile

    def record(self, profile: ModelProfile) -> Model:
        """Return OpenAI's `model` object with additional properties."""
        return {
            "id": self.name_of(profile),
            "root": self.name_of(profile),
            "object": "model",
            "created": self._since,
            "owned_by": "stretto",
            "tasks": [task.name for task in profile.tasks],
            "conversations": [conversation(task) for task in profile.tasks if converses(task)],
            "voices": [{"id": name, "name": name} for name in profile.voices],
            "sample_rate": profile.sample_rate,
            "times_words": profile.times_words,
            "takes_role": any(task.name == DUPLEX and "text" in task.system for task in profile.tasks),
        }

    async def has_adapter(self, name: str) -> bool:
        """Return True if `name` is an adapter; for an unknown name, the server is asked if the list is old."""
        if name not in self.adapters and name != self.label and not is_alias(name):
            await self._list_adapters(REFRESH_S)
        return name in self.adapters

    async def _list_adapters(self, max_age_s: float) -> None:
        now_s = time.monotonic()
        if not self._lists_adapters or (self._listed_s is not None and now_s - self._listed_s <= max_age_s):
            return
        self._listed_s = now_s
        with suppress(ClientError):
            self.adapters = await self._client.adapters({"action": "list"})

    async def records(self) -> list[Model]:
        """Return the `model` objects of the model and of its adapters; see `profile` for the exceptions."""
        model = self.record(await self.profile())
        await self._list_adapters(math.inf)
        adapted: list[Model] = [{**model, "id": name, "root": name, "parent": model["id"]} for name in self.adapters]
        return [model, *adapted]


def is_alias(name: str) -> bool:
    """Return True if `name` (such as an OpenAI model name) selects whichever model is served."""
    return name in MODEL_ALIASES or (len(name) <= MAX_NAME_CHARS and OPENAI_MODELS.fullmatch(name) is not None)


def speaks(profile: ModelProfile) -> bool:
    """Return True if the model speaks a text."""
    return profile.task("tts") is not None


def transcribes(profile: ModelProfile) -> bool:
    """Return True if the model transcribes."""
    return profile.task("asr") is not None


def is_full_duplex(profile: ModelProfile) -> bool:
    """Return True if the model reads audio while it speaks."""
    return profile.task(DUPLEX) is not None


def answers_turns(profile: ModelProfile) -> bool:
    """Return True if the model answers a user's turns."""
    return any(map(converses, profile.tasks))


def converses(task: TaskProfile) -> bool:
    """Return True if the task answers a user's turns."""
    return task.answers == "user" and task.has_history


def conversation(task: TaskProfile) -> Talks:
    """Return the required and optional parts of a task's user turns, and whether replies are spoken."""
    return {"task": task.name, "needs": list(task.needs), "also": list(task.also), "speaks": task.speaks}


def aliases(profile: ModelProfile) -> dict[str, str | None]:
    """Map each alias in `VOICE_ALIASES` to its voice, or to None if the family has no named voices."""
    voices = profile.voices or (None,)
    voice_names = {name.lower() for name in profile.voices}
    return {name: voices[n % len(voices)] for n, name in enumerate(VOICE_ALIASES) if name not in voice_names}


def plain_name(name: str) -> str:
    """Return the form in which names of voices are compared: in lower case, and without surrounding blanks."""
    return normalized("NFC", name.strip()).casefold()


def has_voice(profile: ModelProfile, name: str) -> bool:
    """Return True if the model has a voice with that name."""
    return plain_name(name) in map(plain_name, profile.voices)


def find_voice(profile: ModelProfile, name: str | None, others: Sequence[str] = ()) -> str | None:
    """Return the family's name of a voice, or None for the default voice; raise ApiError if it is unknown.

    Args:
        name: Name or alias in any letter case, or None; several, separated by commas, if `profile.max_voices` allows.
        others: Further names that the error message lists.
    """
    if name is None or name in profile.voices:
        return name
    by_name = aliases(profile) | {voice.lower(): voice for voice in profile.voices}
    names = [word.strip() for word in name.lower().split(",")] if profile.max_voices > 1 else [name.lower()]
    if len(names) > profile.max_voices or any(entry not in by_name for entry in names):
        raise refused("voice", expected_voices(profile.voices, profile.max_voices, *others, *aliases(profile)), name)
    return ",".join(filter(None, map(by_name.get, names))) or None  # None: the model has no named voices


def find_task(profile: ModelProfile, names: tuple[str, ...], what: str) -> TaskProfile:
    """Return the first of the tasks `names` that the model has; raise ApiError if it has none of them."""
    candidates = (task for name in names if (task := profile.task(name)))
    task = next(candidates, None)
    if task is None:
        raise ApiError(400, f"model: {profile.family!r} does not support {what}", "model", "unsupported")
    return task


def clones(task: TaskProfile) -> bool:
    """Return True if the task speaks in the voice of a recording."""
    return task.speaks and "audio" in task.system


@dataclass(frozen=True, slots=True, eq=False)
class VoiceFile(RecordedVoice):
    """Recorded voice whose file is in memory."""

    audio: bytes


class CallersVoices:
    """Voices that the requests of one caller may name.

    A name selects the first of these that exists: the caller's voice with that id, the model's voice with that name,
    the caller's voice with that name, and the voice of an alias. Letter case matters only if it decides between several
    of the caller's voices.
    """

    def __init__(self, store: VoiceStore | None, owner: str):
        self._store = store
        self._owner = owner

    async def check(self, profile: ModelProfile, name: str | None) -> None:
        """Raise ApiError if no conversation with the model can have the voice `name`."""
        voice = await self.own(profile, name)
        if voice is None:
            await self._models_voice(profile, name)
        elif not any(clones(task) for task in profile.tasks if converses(task) or task.name == DUPLEX):
            raise no_cloning(profile, "voice", " in conversations")

    async def choose(self, profile: ModelProfile, task: TaskProfile, name: str | None) -> VoiceFile | str | None:
        """Return the caller's own voice, or the model's name of a voice, that `name` selects; None for the default.

        `name` is an id, a name or an alias. ApiError is raised if the voice is unknown or ambiguous, or the task clones
        no voices.
        """
        return await self.recording(profile, task, name) or await self._models_voice(profile, name)

    async def recording(self, profile: ModelProfile, task: TaskProfile, name: str | None) -> VoiceFile | None:
        """Return the caller's own voice that `name` selects; None if it selects none.

        It raises ApiError if the task does not clone voices, and the errors of `own`.
        """
        voice = await self.own(profile, name)
        if voice is None:
            return None
        if not clones(task):
            raise no_cloning(profile, "voice", f" in task {task.name!r}")
        stored = await FILES.run(expect_store(self._store, "voice").find, self._owner, voice.id)
        if stored is None:  # deleted a moment ago
            raise unknown_voice(400, voice.id)
        return VoiceFile(stored[1], voice.text if "text" in task.system else "")

    async def own(self, profile: ModelProfile, name: str | None) -> StoredVoice | None:
        """Return the caller's own voice that `name` selects, or None; raise ApiError if it is unknown or ambiguous."""
        if name is None or has_voice(profile, name):
            return None
        if ID.fullmatch(name):
            if not any(map(clones, profile.tasks)):
                raise no_cloning(profile, "voice")
            stored = await FILES.run(expect_store(self._store, "voice").head, self._owner, name)
            if stored is None:
                raise unknown_voice(400, name)
            return stored
        voices = await self._stored(profile)
        same = [voice for voice in voices if voice.name == name]
        same = same or [voice for voice in voices if plain_name(voice.name) == plain_name(name)]
        if len(same) > 1:
            ids = [voice.id for voice in same[:MAX_NAMED]] + ["…"] * (len(same) > MAX_NAMED)
            raise refused("voice", f"the id of one of your {len(same)} voices with this name ({', '.join(ids)})", name)
        return same[0] if same else None

    async def _models_voice(self, profile: ModelProfile, name: str | None) -> str | None:
        """Return the model's voice as `find_voice` does; the error also lists some of the caller's voices."""
        try:
            return find_voice(profile, name)
        except ApiError:
            stored = await self._stored(profile)
            return find_voice(profile, name, [voice.name for voice in stored[:MAX_NAMED]])

    async def _stored(self, profile: ModelProfile) -> list[StoredVoice]:
        """Return the caller's voices, or none if the model cannot use them."""
        if self._store is None or not any(map(clones, profile.tasks)):
            return []
        return await FILES.run(self._store.all, self._owner)


def expect_store(store: VoiceStore | None, param: str | None = None) -> VoiceStore:
    """Return the store; raise ApiError for the field `param` if the gateway has none."""
    if store is None:
        message = "voice: this gateway stores no voices; start it with --voices FOLDER"
        raise ApiError(400, message, param, "unsupported")
    return store


def no_cloning(profile: ModelProfile, param: str, where: str = "") -> ApiError:
    """Return the error for the field `param` if the model clones no voices, or none in certain requests (`where`)."""
    return ApiError(400, f"{param}: {profile.family!r} does not clone voices{where}", param, "unsupported")


def unknown_voice(status: int, voice_id: str) -> ApiError:
    """Return the error for an unknown id. Voices that belong to other callers give the same error."""
    return ApiError(status, f"voice: unknown voice {voice_id[:60]!r}", "voice", "voice_not_found")
