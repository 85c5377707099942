"""Model profile, which describes the served model in the ensemble's config (parameter `profile`)."""

import json
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tritonclient.grpc import InferenceServerException
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import ClientError, from_exception
from stretto_contract.speech_checks import USUAL_SIGNALS, Pace, SignalLimits
from stretto_contract.voice_details import VoiceDetails

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PARAMETER = "profile"
NUM_SEQUENCES = 200  # maximum number of entries in a pace
Profile = TypeVar("Profile", bound="DataclassInstance")
# Options that only some families or servers support.
FIRST_OPTIONS = ("depth", "instruct", "language", "repetition_penalty", "schedule", "text_mode", "transliterate")
FAMILY_OPTIONS = (*FIRST_OPTIONS, "beginning", "exaggeration", "piece", "script_temperature", "words")


@dataclass(frozen=True, slots=True)
class TaskProfile:
    """Task of the model.

    Attributes:
        name: Name of the task, such as `tts`.
        needs: Required content of the turn to answer: `text`, `audio`.
        also: Optional content of that turn.
        speaks: True if the reply contains audio.
        answers: Role of the turn to answer.
        has_history: True if earlier turns may be sent.
        system: Content that a system turn may have.
        max_text_rows: Default `text.max_rows` of a reply; 0 without text, or if unknown.
        max_speech_s: Maximum value of `max_audio_s` in seconds; 0 if unknown or if the task does not accept it.
        times_words: True if events contain word times even without the option `words`.
        reads_language: True if a request may name the language of the recording.
        continues: How a clause of a long text reads the codes of one before it: as `turns`, or as the `voice` in a
            system turn; empty if it cannot.
    """

    name: str
    needs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    speaks: bool = False
    answers: str = "user"
    has_history: bool = False
    system: tuple[str, ...] = ()
    max_text_rows: int = 0
    max_speech_s: float = 0.0
    times_words: bool = False
    reads_language: bool = False
    continues: str = ""

    @classmethod
    def from_record(cls, record: Any, path: str = "task") -> Self:
        """Parse a task in JSON from a server of any version; raise ValueError if a field is invalid."""
        return _read(cls, record, path, {})


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Served model, as described to clients by the ensemble's config.

    Fields with a default may be missing in a model repository made by an earlier version.

    Attributes:
        family: Name of the model family.
        sample_rate: Sample rate of the codec in Hz.
        max_text_chars: Maximum length of one request's text in characters; 0 if no task has text as input.
        voices: Names of the voices.
        voice_details: Facts that the publisher states about voices, by name.
        max_voices: Maximum number of voices of a reply; if it is above 1, a request separates their names by commas.
        guidance_scales: Guidance scales that a request may have; empty if the model does not restrict them.
        max_audio_s: Maximum duration of audio input in seconds.
        times_words: True if events of a task contain word times even without the option `words`.
        tasks: Tasks of the model.
        reads_live_text: True if text may be sent in pieces while it is spoken (streamed text input).
        reads_live_audio: True if audio may be transcribed while it is recorded (live audio input).
        pauses_s: Lengths in seconds of the pauses that the model predicts (`SpeechEvent.pauses`).
        languages: Names of the languages that a request may specify, in lower case.
        requires_language: True if a request has to specify a language.
        languages_plain: Languages whose text is read without marks (such as vowel marks), because the helper that adds
            them is missing.
        tags: Tags in a text, such as `[laugh]`, that the model renders as a sound or a manner of speaking.
        options: Options in FAMILY_OPTIONS that this server supports.
        frame_rate: Frames per second of the codec; 0 if unknown.
        phonemes: Phonetic alphabets that the model reads; empty for a model that reads letters only.
        lookahead_frames: Number of frames after those of a sample that it may depend on; negative if a request cannot
            redraw replies.
        has_codes: True if a request can ask for the codes of frames; False for a repository that does not report it.
        signals: Limits beyond which the samples of its speech are faulty.
    """

    family: str
    sample_rate: int
    max_text_chars: int
    voices: tuple[str, ...] = ()
    voice_details: dict[str, VoiceDetails] = field(default_factory=dict, hash=False)
    max_voices: int = 1
    guidance_scales: tuple[float, ...] = ()
    max_audio_s: float = 0.0
    times_words: bool = False
    tasks: tuple[TaskProfile, ...] = ()
    reads_live_text: bool = False
    reads_live_audio: bool = False
    pauses_s: tuple[float, ...] = ()
    languages: tuple[str, ...] = ()
    requires_language: bool = False
    languages_plain: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    options: tuple[str, ...] = FIRST_OPTIONS  # default for servers that do not report them
    frame_rate: float = 0.0
    phonemes: tuple[str, ...] = ()
    lookahead_frames: int = -1
    has_codes: bool = False
    signals: SignalLimits = USUAL_SIGNALS

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read the profile from the ensemble's config, without unknown fields; raise ValueError if it is invalid."""
        parameter = config.get("parameters", {}).get(PARAMETER)
        if parameter is None:
            raise ValueError(
                "the server does not describe its model; recreate its repository with stretto make-repository"
            )
        try:
            record = json.loads(parameter["string_value"])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{PARAMETER}: expected JSON, got an error: {error}") from None
        profile = _read(cls, record, PARAMETER, {"tasks": _tasks, "signals": _signals, "voice_details": _voice_details})
        reads_text = not profile.tasks or any("text" in (*task.needs, *task.also) for task in profile.tasks)
        if profile.sample_rate <= 0 or (reads_text and profile.max_text_chars <= 0):
            raise ValueError(
                f"{PARAMETER}: expected sample_rate and max_text_chars above 0, "
                f"got {profile.sample_rate} and {profile.max_text_chars}"
            )
        return profile

    @property
    def transcribes_live(self) -> bool:
        """True if the task `asr` can transcribe audio while it is recorded (`SpeechClient.transcribe_live`)."""
        return self.reads_live_audio or self.continues_transcripts

    @property
    def continues_transcripts(self) -> bool:
        """True if live audio is transcribed by requests that each have all audio and, as `beginning`, its text."""
        return "beginning" in self.options and not self.reads_live_audio

    def task(self, name: str) -> TaskProfile | None:
        """Return the task called `name`, or None."""
        return next((task for task in self.tasks if task.name == name), None)


def _read(
    profile_class: type[Profile], record: Any, path: str, readers: dict[str, Callable[[Any, str], Any]]
) -> Profile:
    """Create a dataclass from the JSON object at `path`; `readers` read the fields that are not plain values."""
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected an object, got {_shown(record)}")
    values: dict[str, Any] = {}
    for entry in fields(profile_class):
        where = f"{path}.{entry.name}"
        if entry.name in record:
            read = readers.get(entry.name) or READERS[entry.type]
            values[entry.name] = read(record[entry.name], where)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where}: expected a value, got none")
    return profile_class(**values)


def _tasks(value: Any, path: str) -> tuple[TaskProfile, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{path}: expected a list, got {_shown(value)}")
    return tuple(TaskProfile.from_record(record, f"{path}[{index}]") for index, record in enumerate(value))


def _signals(value: Any, path: str) -> SignalLimits:
    return _read(SignalLimits, value, path, {"pace": _pace})


def _voice_details(value: Any, path: str) -> dict[str, VoiceDetails]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected an object, got {_shown(value)}")
    return {name: _read(VoiceDetails, details, f"{path}.{name}", {}) for name, details in value.items()}


def _pace(value: Any, path: str) -> Pace | None:
    return None if value is None else _read(Pace, value, path, {"seconds": _seconds})


def _seconds(value: Any, path: str) -> dict[str, float]:
    if not isinstance(value, dict) or len(value) > NUM_SEQUENCES:
        raise ValueError(f"{path}: expected an object with at most {NUM_SEQUENCES} entries, got {_shown(value)}")
    return {sequence: READERS[float](seconds, f"{path}.{sequence}") for sequence, seconds in value.items()}


def _checker(what: str, fits: Callable[[Any], bool], convert: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    def read(value: Any, path: str) -> Any:
        if not fits(value):
            raise ValueError(f"{path}: expected {what}, got {_shown(value)}")
        return convert(value)

    return read


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


READERS: dict[Any, Callable[[Any, str], Any]] = {  # keyed by the declared type of a field
    str: _checker("text", lambda value: isinstance(value, str), str),
    int: _checker("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool), int),
    float: _checker("a finite number", _is_number, float),
    bool: _checker("true or false", lambda value: isinstance(value, bool), bool),
    tuple[str, ...]: _checker("a list of texts", _is_list_of_text, tuple),
    tuple[float, ...]: _checker("a list of finite numbers", _is_list_of_numbers, tuple),
}


async def fetch_profile(client: InferenceServerClient, model: str, server: str, timeout_s: float) -> ModelProfile:
    """Fetch the model profile from a server.

    Raises:
        ClientError: No server answers.
        ValueError: The profile is missing or invalid.
    """
    try:
        config = await client.get_model_config(model, as_json=True, client_timeout=timeout_s)
    except InferenceServerException as error:
        raise from_exception(error, server) from None
    return ModelProfile.from_config(config.get("config", {}))


async def fetch_name(client: InferenceServerClient, server: str, timeout_s: float) -> str:
    """Fetch the server's name in its metadata; `stretto serve` sets it to JSON with the model and its revision."""
    try:
        metadata = await client.get_server_metadata(client_timeout=timeout_s)
    except InferenceServerException as error:
        raise from_exception(error, server) from None
    return str(metadata.name)


FetchProfile = Callable[[], Awaitable[ModelProfile]]


async def known_profile(profile: FetchProfile) -> ModelProfile | None:
    """Return the model profile; None if the server has none, or does not answer."""
    with suppress(ValueError, ClientError):
        return await profile()
    return None
