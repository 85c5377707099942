"""Optional parts of families. Their code is in the family's folder, and the engine calls it at fixed points."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from stretto.records.prompt import Condition


class RequestConditions:
    """Input that all layers of a Llama backbone use in all rows of a request, such as a voice (`Prompt.condition`).

    A family's conditions are a frozen dataclass with these attributes and its constants. The functions are references
    (`plugin.lazy`) whose first argument is the conditions.

    Attributes:
        vector_rows: Number of key and value vectors that each layer stores for each batch slot.
        guidance_scales: Guidance scales that the model accepts as an input, instead of CFG pairs; empty for none.
        network: Function of (conditions, width of the backbone) that returns a
            `engine.worker.predictors.ConditionNetwork`, whose weights are the tensors `conditions.…` of the checkpoint.
        layer: Function of (conditions) that returns the class of the backbone's layers, derived from vLLM's
            `LlamaDecoderLayer`.
        reference: Function of (conditions) that returns a `stretto.testing.ReferenceConditions`.
    """

    vector_rows: int
    guidance_scales: tuple[float, ...]
    max_voices: int
    network: ClassVar[Callable[..., Any]]
    layer: ClassVar[Callable[..., Any]]
    reference: ClassVar[Callable[..., Any]]

    def check(self, condition: Condition) -> None:
        """Raise InvalidRequest if a request's condition does not fit."""


class RowSchedule(Protocol):
    """Division of a reply's rows into steps."""

    @property
    def max_extra(self) -> int:
        """Maximum number of rows that a step generates after its first one."""
        ...

    def num_extra(self, index: int) -> int:
        """Return how many rows a step generates after its first one, which is row `index`."""
        ...

    def next_step(self, index: int) -> int:
        """Return the smallest index, from `index` on, of a row that is the first one of a step."""
        ...


class RowSteps(ABC):
    """Steps that generate several rows of a reply: the backbone the first one, and a predictor the others.

    The number of rows depends only on the position in the reply, so that scheduler and worker agree on it. A family's
    steps are a frozen dataclass with these attributes and its constants. The functions are references (`plugin.lazy`)
    whose first argument is the steps.

    Attributes:
        predictor: Function of (steps, model, `GeneratedRows`, vLLM's configuration) that returns an
            `engine.worker.predictors.RowPredictor`.
        extend: Function of (steps, model, vLLM's configuration) that adds the predictor's modules to the model; None
            if there are none.
    """

    predictor: ClassVar[Callable[..., Any]]
    extend: ClassVar[Callable[..., Any] | None] = None

    @property
    @abstractmethod
    def max_extra(self) -> int:
        """Maximum number of rows that a step generates after its first one."""

    @property
    @abstractmethod
    def window(self) -> int:
        """Number of newest rows that the predictor may process again, which changes their keys and values."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the schedules that a request may select."""

    @abstractmethod
    def schedule(self, name: str | Sequence[int] | None) -> RowSchedule:
        """Return the schedule of a request by `options.schedule`, its name or numbers; None for the default."""

    @abstractmethod
    def check_numbers(self, numbers: tuple[int, ...]) -> None:
        """Raise InvalidRequest if the numbers of a request's schedule are invalid."""


class CollectedStates(Protocol):
    """Hidden states of a prompt's rows, which the scheduler collects over several steps."""

    def put(self, rows: np.ndarray) -> None:
        """Add states, float32 [n, 1 + H], with positions in column 0. States of known positions do not change."""

    @property
    def first_unknown(self) -> int | None:
        """Position of the first row whose state is unknown; None if all are known."""
        ...

    @property
    def states(self) -> np.ndarray:
        """Hidden states of the prompt's rows, float32 [n, H]; some are missing until `first_unknown` is None."""
        ...


class Speaker:
    """Second model, which speaks the text that the first model, the writer, generates.

    Both have engines of their own. The reply's codec and its frames are those of the speaker's family, which the
    speaker's config.json names. A family's speaker is a frozen dataclass with these attributes and its constants. The
    functions are references (`plugin.lazy`) whose first argument is the speaker.

    Attributes:
        folder: Folder of the speaker's checkpoint in that of the writer.
        launch: Function of (speaker, `EngineConfig`) that starts both models, and returns an object with the attributes
            and methods of `engine.llm.SpeechLLM`.
        extend: Function of (speaker, writer's model, vLLM's configuration) that makes the model keep hidden states for
            the speaker.
        send_states: Function of (speaker, writer's model) that returns a replacement of vLLM's `PromptLogprobsWorker`.
            Its `compute_prompt_token_id_logprobs` returns the states that a step sends to the scheduler, as
            `CollectedStates.put` takes them, keyed by request id. `begin(SpeechRequestData)` begins a request.
        collect_states: Function of (speaker, writer's family, `Prompt`) that returns `CollectedStates` of a request,
            which the listener of `SpeechLLM.reply_chunks` gets before the first id; None if the speaker reads none.
    """

    folder: ClassVar[str]
    launch: ClassVar[Callable[..., Any]]
    extend: ClassVar[Callable[..., Any]]
    send_states: ClassVar[Callable[..., Any]]
    collect_states: ClassVar[Callable[..., Any]]


class PauseHeads:
    """Heads of the model that predict, in each row, the probability of a pause of each length.

    A family's heads are a frozen dataclass with these attributes. Their weight in the checkpoint is
    `pause_heads.weight` [n, H], with the classes of one head after those of the other.

    Attributes:
        lengths_s: Lengths of the pauses in seconds.
        sampler: Function of (heads, sampler of the family, model) that returns a sampler around it, which appends a
            word for each length to each row: a reference (`plugin.lazy`).
    """

    lengths_s: tuple[float, ...]
    num_classes: int
    sampler: ClassVar[Callable[..., Any]]


def _of_codes(_: object) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda codes, is_code: is_code.all(0)


class FrameFilter:
    """Choice of the frames of a reply that are decoded and reported.

    A filter with constants is a frozen dataclass.

    Attributes:
        open: Function of (filter) that returns the filter of a reply: a function of the codes [K, n] of its next
            frames, and of which ids are codes, bool [K, n] (others are of `StreamLayout.extra`). It returns True for
            each frame to keep, bool [n]. Latents are words [K, n] and bool [1, n]. A family may override it with a
            reference (`plugin.lazy`); this one keeps frames of codes.
    """

    open: ClassVar[Callable[..., Any]] = _of_codes


@dataclass(frozen=True)
class Mechanism:
    """Parts that most families lack; each is None in a family without it."""

    conditions: RequestConditions | None = None
    speaker: Speaker | None = None
    steps: RowSteps | None = None
    pauses: PauseHeads | None = None
    frames: FrameFilter | None = None


NO_MECHANISM = Mechanism()
