"""What the server tells of its model: the parameter `profile` of the ensemble's config."""

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tritonclient.grpc import InferenceServerException
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import from_exception

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PARAMETER = "profile"
Profile = TypeVar("Profile", bound="DataclassInstance")
# Options that only some families take.
FAMILY_OPTIONS = ("depth", "instruct", "language", "repetition_penalty", "schedule", "text_mode", "transliterate")


@dataclass(frozen=True, slots=True)
class TaskProfile:
    """One task of the model.

    Attributes:
        name: name of the task, such as `tts`.
        needs: required contents of the turn that it answers: `text`, `audio`.
        also: optional contents of that turn.
        speaks: the reply contains audio.
        answers: role of the turn that it answers.
        has_history: earlier turns may be sent.
        system: allowed contents of a system turn.
        max_text_rows: default `text.max_rows` of a reply; 0 if unknown.
        max_speech_s: largest `max_audio_s` of a reply in seconds; 0 if unknown or if it takes none.
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

    @classmethod
    def from_record(cls, record: Any, path: str = "task") -> Self:
        """The inverse of how the server writes it, or another version of it; ValueError names what of it is wrong."""
        return _read(cls, record, path, {})


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The served model, as the ensemble's config describes it to clients.

    Fields with a default may be missing from a repository that an earlier version has made.

    Attributes:
        family: name of the model family.
        sample_rate: sampling rate of the codec in Hz.
        max_text_chars: length limit of one request's text.
        voices: names of the voices.
        voice_titles: of the voices in their order, for people; () if their names say enough.
        max_audio_s: length limit of audio input in seconds.
        times_words: events carry the start times of words.
        tasks: what the model does.
        reads_live_text: a text may be sent in pieces while it is spoken.
        languages: lower-case English names of the languages that a request may name.
        options: those of FAMILY_OPTIONS that this family takes.
        frame_rate: frames per second of the codec; 0 if unknown.
    """

    family: str
    sample_rate: int
    max_text_chars: int
    voices: tuple[str, ...] = ()
    voice_titles: tuple[str, ...] = ()
    max_audio_s: float = 0.0
    times_words: bool = False
    tasks: tuple[TaskProfile, ...] = ()
    reads_live_text: bool = False
    languages: tuple[str, ...] = ()
    options: tuple[str, ...] = FAMILY_OPTIONS
    frame_rate: float = 0.0

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The profile in the ensemble's config, as Triton tells it; ValueError where it has none, or one of no sense.

        What this version does not know is left out.
        """
        parameter = config.get("parameters", {}).get(PARAMETER)
        if parameter is None:
            raise ValueError("the server tells nothing of its model: stretto make-repository makes it anew")
        try:
            record = json.loads(parameter["string_value"])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{PARAMETER}: expected JSON, got an error: {error}") from None
        profile = _read(cls, record, PARAMETER, {"tasks": _tasks})
        if min(profile.sample_rate, profile.max_text_chars) <= 0:
            raise ValueError(
                f"{PARAMETER}: expected sample_rate and max_text_chars above 0, "
                f"got {profile.sample_rate} and {profile.max_text_chars}"
            )
        return profile

    def task(self, name: str) -> TaskProfile | None:
        """The task called `name`."""
        return next((task for task in self.tasks if task.name == name), None)


def _read(kind: type[Profile], record: Any, path: str, own: dict[str, Callable[[Any, str], Any]]) -> Profile:
    """A dataclass of the fields that `record` has; `own` reads those that are no plain values."""
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected an object, got {_shown(record)}")
    values: dict[str, Any] = {}
    for each in fields(kind):
        where = f"{path}.{each.name}"
        if each.name in record:
            read = own.get(each.name) or READERS[each.type]
            values[each.name] = read(record[each.name], where)
        elif each.default is MISSING:
            raise ValueError(f"{where}: expected a value, got nothing")
    return kind(**values)


def _tasks(value: Any, path: str) -> tuple[TaskProfile, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{path}: expected a list, got {_shown(value)}")
    return tuple(TaskProfile.from_record(each, f"{path}[{index}]") for index, each in enumerate(value))


def _checker(what: str, fits: Callable[[Any], bool], made: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    def read(value: Any, path: str) -> Any:
        if not fits(value):
            raise ValueError(f"{path}: expected {what}, got {_shown(value)}")
        return made(value)

    return read


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


READERS: dict[Any, Callable[[Any, str], Any]] = {  # by the type that a field is declared with
    str: _checker("text", lambda value: isinstance(value, str), str),
    int: _checker("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool), int),
    float: _checker("a finite number", _is_number, float),
    bool: _checker("true or false", lambda value: isinstance(value, bool), bool),
    tuple[str, ...]: _checker("a list of texts", _is_list_of_text, tuple),
}


async def fetch_profile(client: InferenceServerClient, model: str, server: str, timeout_s: float) -> ModelProfile:
    """What the server at `server` (host:port) tells of `model`, within so many seconds.

    Raises a ClientError where no server answers, ValueError where it tells nothing, or what makes no sense.
    """
    try:
        told = await client.get_model_config(model, as_json=True, client_timeout=timeout_s)
    except InferenceServerException as error:
        raise from_exception(error, server) from None
    return ModelProfile.from_config(told.get("config", {}))
