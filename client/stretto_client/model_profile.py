"""What the server tells of its model: the parameter `profile` of the ensemble's config."""

import json
from dataclasses import dataclass
from typing import Any, Self

from tritonclient.grpc import InferenceServerException
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import from_exception

PARAMETER = "profile"


@dataclass(frozen=True, slots=True)
class TaskProfile:
    """One thing that the model does.

    needs, also: what the turn that it answers must hold, and what it may hold besides: `text`, `audio`.
    answers: whose turn that is. has_history: whether turns may come before it. system: what a system turn may hold.
    """

    name: str
    needs: tuple[str, ...]
    also: tuple[str, ...]
    speaks: bool
    answers: str
    has_history: bool
    system: tuple[str, ...]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """The inverse of how the server writes it."""
        lists = {name: tuple(record[name]) for name in ("needs", "also", "system")}
        return cls(**record | lists)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model as its clients see it.

    sample_rate: of its codec, in Hz. max_text_chars: of one request. max_audio_s: of what it hears.
    times_words: whether events tell when words start.
    """

    family: str
    sample_rate: int
    voices: tuple[str, ...]
    max_text_chars: int
    max_audio_s: float
    times_words: bool
    tasks: tuple[TaskProfile, ...]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The profile in the ensemble's config, as Triton tells it; ValueError where it has none."""
        parameter = config.get("parameters", {}).get(PARAMETER)
        if parameter is None:
            raise ValueError("the server tells nothing of its model: stretto make-repository makes it anew")
        record = json.loads(parameter["string_value"])
        tasks = tuple(TaskProfile.from_record(task) for task in record["tasks"])
        return cls(**record | {"voices": tuple(record["voices"]), "tasks": tasks})

    def task(self, name: str) -> TaskProfile | None:
        """The task called `name`."""
        return next((task for task in self.tasks if task.name == name), None)


async def fetch_profile(client: InferenceServerClient, model: str, server: str, timeout_s: float) -> ModelProfile:
    """What the server at `server` (host:port) tells of `model`, within so many seconds.

    Raises a ClientError where no server answers, ValueError where it tells nothing.
    """
    try:
        told = await client.get_model_config(model, as_json=True, client_timeout=timeout_s)
    except InferenceServerException as error:
        raise from_exception(error, server) from None
    return ModelProfile.from_config(told.get("config", {}))
