"""Mechanism: a rule that only one family has, in that family's own folder. The engine calls it at fixed points."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from stretto.records.prompt import Condition


class RequestConditions:
    """Network of a family with a Llama backbone, which conditions all rows of a request (`Prompt.condition`).

    A family's conditions are a frozen dataclass with these attributes and its constants. The functions are references
    (`plugin.lazy`) whose first argument is the conditions.

    Attributes:
        vector_rows: Number of keys and values of the backbone's width that each layer keeps for each batch slot.
        guidance_scales: Guidance scales that the model accepts as an input, instead of CFG pairs; empty for none.
        max_voices: Maximum number of named voices of a reply.
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
        extend: Function of (steps, model, vLLM's configuration) that adds to the model what the predictor needs; None
            for nothing.
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
    """Hidden states of a prompt's rows, which the scheduler collects from the steps that compute it."""

    def put(self, rows: np.ndarray) -> None:
        """Add states, float32 [n, 1 + H], whose column 0 has their positions. Known ones do not change."""

    @property
    def first_unknown(self) -> int | None:
        """Position of the first row whose state is unknown; None if all are known."""
        ...

    @property
    def states(self) -> np.ndarray:
        """All states, float32 [n, H], in order; complete once `first_unknown` is None."""
        ...


class Speaker:
    """Second model, which speaks the text that the first one, the writer, generates.

    Both have engines of their own. The reply's codec and its frames are those of the speaker's family, which the
    speaker's config.json names. A family's speaker is a frozen dataclass with these attributes and its constants. The
    functions are references (`plugin.lazy`) whose first argument is the speaker.

    Attributes:
        folder: Folder of the speaker's checkpoint in that of the writer.
        launch: Function of (speaker, `EngineConfig`) that starts both models, and returns an object with the attributes
            and methods of `engine.llm.SpeechLLM`.
        extend: Function of (speaker, writer's model, vLLM's configuration) that adds to the model what it keeps for the
            speaker.
        send_states: Function of (speaker, writer's model) that returns what replaces vLLM's `PromptLogprobsWorker`. Its
            `compute_prompt_token_id_logprobs` returns the states that a step sends to the scheduler, as
            `CollectedStates.put` takes them, keyed by request id. `begin(SpeechRequestData)` begins a request.
        collect_states: Function of (speaker, writer's family, `Prompt`) that returns `CollectedStates` of a request,
            which the listener of `SpeechLLM.reply_chunks` gets before the first id; None if the speaker reads none.
    """

    folder: ClassVar[str]
    launch: ClassVar[Callable[..., Any]]
    extend: ClassVar[Callable[..., Any]]
    send_states: ClassVar[Callable[..., Any]]
    collect_states: ClassVar[Callable[..., Any]]


@dataclass(frozen=True)
class Mechanism:
    """Rule of a family's replies, beyond those that all families share; this base class has no effect.

    A family's mechanism is a frozen dataclass with its constants. It overrides the attributes and methods that it
    needs, which are grouped by topic here and in the class. Attributes that are functions are references
    (`plugin.lazy`) whose first argument is the mechanism, because most processes know a family without the engine.

    In each step, the rule of stream 0 replaces the ids that the model sampled on stream 0, before the other streams are
    sampled. The rule of all streams may replace ids after that:

        stream 0 is sampled ─► rule of stream 0 ─► other streams are sampled ─► rule of all streams ─► row is written

    Attributes:
        columns: Names of the state columns: integers of each reply that the engine stores after those of
            `engine.rules.STATE`, sends to the host with each row, and restores after a preemption.
        ends_audio: True if the rule ends the audio, and no sampled id does.
        on_arrays: Function of (mechanism, `SegmentRules`, `SlotTables`, `Arrays`) that returns the rule of stream 0 for
            numpy and torch: a function of the sampled ids of stream 0 [B] and the `Rows`, which returns the ids to
            write [B] and writes the new state to the tables. None without a rule.
        on_device: Function of (mechanism, `SegmentRules`, `SlotTables`, max. rows of a step) that returns the launch
            of the rule's kernel: a function of (ids of the streams [N, S], step's table [N, C], positions [N], number
            of rows, buffer of second ids [N] or None). None without a kernel: then torch samples on a GPU.
        ends_streams: True if each output stream has an end id, the last of its ids, which is masked before the minimum
            length.
        streams_on_arrays: Function with the arguments of `on_arrays` that returns the rule of all streams: a function
            of the ids of stream 0 [B], of the others [B, K], and the `Rows`, which returns the ids to write.
        streams_on_device: Function with the arguments of `on_device` that returns the launch of this rule's kernel,
            a function of (ids of stream 0, of the others, step's table, positions, number of rows).
        row_draw: Function of (mechanism, readout, `SegmentState`, `SlotTables`, `Arrays`, stream 0 of every slot by
            position [R, T]) that returns a `RowDraw` of the mechanism. None for the engine's own.
        step_program: Function of (mechanism, readout, `SegmentRules`, `SlotTables`, stream 0 [R, T], buffer of hidden
            states [N, H]) that returns a `StepProgram`. In a family with latents, the maximum number of rows of a step
            and the solver steps to capture replace the buffer. None for the engine's own.
        guides_rows: True if the latent predictor applies classifier-free guidance within a row, without a CFG pair;
            `LatentSampling.guidance_scale` is its scale.
        pair: Function of (mechanism, id of the conditional request) that returns the
            `engine.scheduling.request_state.GuidancePair` of a guided reply. None for the engine's own, which guides
            all audio.
        open_track: Function of (mechanism, `SegmentRules`, first row, ids, is open) that returns the
            `engine.tracks.Track` of a reply. None for the common tracks, whose ids are read row by row.
        sampler: Function of (mechanism, sampler of the family, model) that returns a sampler around it, which appends
            words to each row. None for no more words.
        frame_filter: Function of (mechanism) that returns the filter of a reply's frames: a function of the codes
            [K, n] of its next frames that returns True for each frame to decode and report, bool [n]. None for all.
        times_words: True if the rule reports when words begin (`Track.begun_word`, `begun_token`).
        reference: Function of (mechanism, `Prompt`) that returns the `stretto.testing.ReferenceRule` of a reply, which
            states the rule for the slow reference. None without a rule.
        random_text: Function of (mechanism, number) that returns the ids of a text for a test prompt, without its end
            id. None for ordinary ids.
    """

    # State of a reply.
    columns: ClassVar[tuple[str, ...]] = ()

    def initial_state(self) -> Sequence[int]:
        """Return the values of `columns` before a reply."""
        return (0,) * len(self.columns)

    # Stream 0 in audio: ids that the model samples, and the rule that replaces them.
    ends_audio: ClassVar[bool] = False
    on_arrays: ClassVar[Callable[..., Any] | None] = None
    on_device: ClassVar[Callable[..., Any] | None] = None

    def sampled_ids(self, ids: Sequence[int]) -> list[int]:
        """Return those of the sorted `ids` of stream 0 in audio that the model may sample."""
        return list(ids)

    def written_ends(self, ends: Sequence[int]) -> Sequence[int]:
        """Return those of `ends`, ids sampled to end the audio, that still end it after the rule of stream 0."""
        return ends

    # All streams: their end ids, and the rule that replaces ids after all are sampled.
    ends_streams: ClassVar[bool] = False
    streams_on_arrays: ClassVar[Callable[..., Any] | None] = None
    streams_on_device: ClassVar[Callable[..., Any] | None] = None

    # Sampling from logits or of latents, in place of the engine's.
    row_draw: ClassVar[Callable[..., Any] | None] = None
    step_program: ClassVar[Callable[..., Any] | None] = None

    @property
    def num_own_words(self) -> int:
        """Number of words at the end of a latent row (`LatentSpec`) that are not of the latent."""
        return 0

    # Guidance.
    guides_rows: ClassVar[bool] = False
    pair: ClassVar[Callable[..., Any] | None] = None

    # Prompt, and track: ids that are known before their rows are sampled, such as a text.
    open_track: ClassVar[Callable[..., Any] | None] = None

    @property
    def prompt_end(self) -> int | None:
        """Id of stream 0 with which every prompt ends; None for any id."""
        return None

    @property
    def num_prompt_ids(self) -> int:
        """Number of ids of a streamed text that precede the first frame, if later rows read an id each.

        The prompt of an open text ends with as many rows; a text with fewer ids has only the last of them.
        """
        return 1

    @property
    def streams(self) -> range:
        """Input-only streams of the track in a family without streamed text and given codes; empty without a track."""
        return range(0)

    def num_recorded(self, ids: Sequence[int]) -> int:
        """Return how many ids at the start of a track are codes of a recording, which precede the text."""
        return 0

    def num_text_entries(self, max_rows: int) -> int:
        """Return the size of a slot's table for the entries of the track, in replies of at most `max_rows` rows."""
        return 0

    def written_entries(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the entries of a slot's table that the rows of a reply have written, for a preempted reply.

        Args:
            ids: Ids of the reply's text segment so far.
        """
        return ()

    def max_text_ids(self, num_rows: int) -> int:
        """Return the maximum number of text ids, excluding the end id, in a reply of `num_rows` rows before its last.

        Each row reads one id, and the last one the end id, unless a mechanism has text rows of its own.
        """
        return max(num_rows - 1, 0)

    def check_text(self, ids: Sequence[int], tokens: range) -> None:
        """Check the ids of a text.

        Args:
            ids: Ids, without the end id.
            tokens: Ids of stream 0 in audio.

        Raises:
            InvalidRequest: An id is invalid.
        """

    def second_ids(self, number: int) -> range:
        """Return the `number` ids of a second text stream that a depth transformer reads (`DepthSpec`)."""
        return range(0)

    @property
    def text_row_ids(self) -> tuple[int, ...]:
        """Ids of stream 0 in audio rows with text instead of a frame; empty if all audio rows have frames.

        The text stream of such a row has -1 - i, which refers to entry i of the slot's table (`num_text_entries`),
        because this entry may arrive after the row was sampled.
        """
        return ()

    def num_text_rows(self, state: Sequence[int]) -> int:
        """Return how many audio rows so far have text instead of a frame, given the values of `columns`."""
        return 0

    # Networks of the model, its steps and heads.
    sampler: ClassVar[Callable[..., Any] | None] = None

    @property
    def conditions(self) -> RequestConditions | None:
        """Network that conditions all rows of a request; None without one."""
        return None

    @property
    def speaker(self) -> Speaker | None:
        """Second model, which speaks the text of replies; None if there is none."""
        return None

    @property
    def steps(self) -> RowSteps | None:
        """Steps that generate several rows; None if each step generates one."""
        return None

    @property
    def heads(self) -> Mapping[str, int]:
        """Number of rows of each additional head [n, H] of the checkpoint, keyed by its name."""
        return {}

    @property
    def pauses_s(self) -> tuple[float, ...]:
        """Lengths of the pauses whose probabilities `sampler` appends to each row, in seconds."""
        return ()

    # Frames and words of a reply, after the engine.
    frame_filter: ClassVar[Callable[..., Any] | None] = None
    times_words: ClassVar[bool] = False

    def begun_token(self, before: Sequence[int], after: Sequence[int]) -> int | None:
        """Return the index of the spoken token that begins in a row, by the state before and after it; None if none.

        Spoken tokens are those of the generated text that `TextCodec.matched` matches with words.
        """
        return None

    # Test kit (`stretto.testing`).
    reference: ClassVar[Callable[..., Any] | None] = None
    random_text: ClassVar[Callable[..., Any] | None] = None


NO_MECHANISM = Mechanism()
