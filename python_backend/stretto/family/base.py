"""Data that describes a model family: streams, ids, tasks, model components and defaults."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from math import ceil
from typing import Any, ClassVar, Literal, Self, TypeVar, cast, get_args, get_type_hints

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.input_tracks import CodeTrack, InputTrack, TextTrack
from stretto.family.mechanism import NO_MECHANISM, Mechanism
from stretto.family.speech_limits import USUAL_LIMITS, SpeechLimits
from stretto.records.json_record import JsonRecord
from stretto.records.sampling import SamplingConfig
from stretto.streams.layout import FORCED_TAIL, PADDED_WARM_UP, Segment, StreamLayout, Tail, WarmUp
from stretto_contract.voice_details import VoiceDetails

VOCABULARY = "speech_vocabulary"  # key of a checkpoint's config.json


class Vocabulary:
    """Ids and sizes of a release, from `speech_vocabulary` in config.json; base class of frozen dataclasses."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the vocabulary in a record; raise InvalidRequest for an unknown key or an invalid value.

        Missing keys get their defaults. An unknown key of a nested record is ignored if it is null: earlier versions
        wrote a field of a single family for all families with a depth transformer.
        """
        kinds = get_type_hints(cls)
        without_nulls = {name: _without_unknown_nulls(kinds.get(name), value) for name, value in record.items()}
        return JsonRecord(cls).read(VOCABULARY, json.dumps(without_nulls).encode())

    def to_record(self) -> dict[str, Any]:
        """Return the vocabulary as a record for `from_record`."""
        return asdict(cast(Any, self))


def _without_unknown_nulls(hint: Any, value: Any) -> Any:
    if not is_dataclass(hint) or not isinstance(value, Mapping):
        return value
    names = {declared.name for declared in fields(hint)}
    return {name: member for name, member in value.items() if name in names or member is not None}


@dataclass(frozen=True)
class DepthSpec:
    """Hyperparameters of a depth transformer with Llama or Qwen3 layers; a family with other layers has a subclass.

    Position 0 reads the row's hidden state, and position p the code of stream p - 1. The output of position p is used
    to sample stream p. Codes have embedding tables of width `hidden`, which already include any projection in the
    published model.

    With a `schedule`, position p instead reads the sum of the hidden state, projected for this position,
    and the code of stream p. Its output is used to sample stream p + 1. There are neither rotary embeddings nor a final
    norm.

    Attributes:
        rope: `rope_parameters` of a published config.json, including `rope_theta`; empty with a schedule.
        projection: Linear layer from the backbone's width to `hidden`, without bias (`plain`) or with one (`biased`);
            None if the widths are equal.
        has_head_norms: True if queries and keys are normalised per head, as in Qwen3.
        num_first: Number of streams, from stream 0 on, that are sampled from the output of position 0. If 0, stream 0
            is sampled from the hidden state. If 2, position p reads the code of stream p, for stream p + 1, and no
            position reads stream 0; only a `network` of the family supports this. Must be 0 in a family with
            guidance or with a schedule.
        schedule: Index of the weight set used at each position, 0 to S - 2; empty if all positions share one set.
        num_second_ids: Number of ids of the second text stream (`Family.second_ids`), which position 0 reads in
            addition to stream 0; their embeddings follow those of the other streams. Needs a schedule. 0 for none.
        network: Function of (spec, number of ids of each stream, number of end ids, width of the backbone,
            quantization) that returns the family's own network: an `engine.models.depth_transformer.DepthWeights` with
            the methods of `engine.worker.predictors.DepthNetwork`. None for the engine's. This and the following
            functions are references (`plugin.lazy`).
        reference: Function of (spec, family, weights) that returns the `testing.depth_reference.SlowDepth`, and removes
            its tensors from the weights.
        random_weights: Function of (spec, random) that returns random norms and layers, named as in a checkpoint;
            `random(*shape, scale=…)` returns a random tensor.
    """

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    rope: Mapping[str, Any] = field(hash=False, default_factory=dict)
    projection: Literal["plain", "biased"] | None = "plain"
    has_head_norms: bool = False
    num_first: int = 0
    schedule: tuple[int, ...] = ()
    num_second_ids: int = 0

    network: ClassVar[Callable[..., Any] | None] = None
    reference: ClassVar[Callable[..., Any] | None] = None
    random_weights: ClassVar[Callable[..., Any] | None] = None

    def __post_init__(self) -> None:
        num_sets = 1 + max(self.schedule, default=-1)
        if self.num_second_ids and not self.schedule:
            raise ValueError(f"expected a schedule, which num_second_ids needs, got {self}")
        others = self.rope or self.has_head_norms or self.num_first
        if sorted({*self.schedule}) != [*range(num_sets)] or (self.schedule and others):
            expected = "a schedule of sets from 0 on, without rope and head norms, and with stream 0 from elsewhere"
            raise ValueError(f"expected {expected}, got {self}")
        if self.num_first not in (0, 1) and self.network is None:
            raise ValueError(f"expected num_first 0 or 1, got {self}")

    @property
    def num_sets(self) -> int:
        """Number of weight sets if there is a schedule, otherwise 0."""
        return 1 + max(self.schedule, default=-1)


# Options that a family may take: the beginning of a transcript, which the template writes at the end of the prompt and
# a `ContinuingReader` reads; the strength of the voice's emotion, a description of the speaking style, the number of a
# piece of a text that is spoken by several requests, the temperature at which the alignment pointer advances, and
# transliteration of text in scripts other than Latin, which is otherwise rejected.
FamilyOption = Literal["beginning", "exaggeration", "instruct", "piece", "script_temperature", "transliterate"]
Role = Literal["system", "user", "assistant"]
ROLES = get_args(Role)


@dataclass(frozen=True)
class UnconditionalContext:
    """Rules for how the unconditional request of a CFG pair differs from the conditional request.

    Both requests have the same positions. These rows differ:

    - Context rows after the first `keep_first` and before the last `keep_last` become `[null_id, pad, …]`.
    - In audio rows, ids of the audio interval become `null_id` (stream 0) or pad (other output streams) on the streams
      in `hidden_streams`. Input-only streams among these become pads. Other ids, such as end of audio, are unchanged.
    - Before a stream's first frame, codes of the prompt's `delayed_tail` become pads (with `PADDED_WARM_UP`).

    The initial ids (`StreamLayout.initial`) are kept in all rows.

    A family with other rules has a subclass with a `pair`.

    Attributes:
        pair: Function of (context, id of the conditional request) that returns the
            `engine.scheduling.request_state.GuidancePair` of a guided reply: a reference (`plugin.lazy`). None for the
            engine's own, which guides all audio.
    """

    null_id: int
    keep_first: int
    keep_last: int
    hidden_streams: tuple[int, ...] = ()

    pair: ClassVar[Callable[..., Any] | None] = None


UNGUIDED = UnconditionalContext(null_id=0, keep_first=0, keep_last=1)  # placeholder for families without CFG pairs
READ_ALOUD = ("tts", "speak")  # tasks whose replies speak a given text; others answer it
WRITTEN_DOWN = ("asr", "translate")  # tasks whose replies are the text of a recording


@dataclass(frozen=True)
class TextRate:
    """Maximum length of the text for a recording, so that a model cannot continue to invent words.

    The defaults are for subwords: about four times as many as in usual speech.

    Attributes:
        first_rows: Rows for any recording.
        rows_per_s: Further rows for each second of it.
    """

    first_rows: int = 16
    rows_per_s: float = 25.0

    def max_rows(self, seconds: float) -> int:
        """Return the maximum number of rows of text for a recording of `seconds` seconds."""
        return self.first_rows + ceil(self.rows_per_s * seconds)


@dataclass(frozen=True)
class Task:
    """Task of a family: the segments of its reply, and the input that it accepts.

    Attributes:
        segments: Segments of the reply, in order.
        text: Ids that a text segment may contain, including codes if the segment is interleaved.
        needs: Content that the last turn must have: `text`, `audio`.
        also: Content that the last turn may have in addition.
        has_history: True if user and assistant turns may precede the last turn.
        system: Content that a leading system turn may have; empty if none is allowed.
        voice_roles: Roles of the turns whose recordings are of voices to clone. Silence in them is refused.
        text_rate: Maximum length of the text, in tasks that transcribe the last turn's recording.
        speech_limits: Maximum length of the speech, in tasks that read the last turn's text aloud.
        continues: How the prompt for a clause of a long text contains the codes of an earlier clause: as `turns`, or as
            the `voice` in a system turn; empty if it cannot.
    """

    name: str
    segments: tuple[Segment, ...]
    text: tuple[range, ...]
    needs: tuple[str, ...]
    sampling: SamplingConfig
    also: tuple[str, ...] = ()
    answers: Role = "user"
    has_history: bool = False
    system: tuple[str, ...] = ()
    voice_roles: tuple[Role, ...] = ("system",)
    text_rate: TextRate = TextRate()
    speech_limits: SpeechLimits = USUAL_LIMITS
    continues: Literal["", "turns", "voice"] = ""

    def __post_init__(self) -> None:
        self.sampling.check()

    @property
    def speaks(self) -> bool:
        """True if the reply contains audio."""
        return self.has_audio_segment or Segment.INTERLEAVED in self.segments

    @property
    def writes(self) -> bool:
        """True if the model generates text, alone, before the audio or between codes."""
        return self.segments[0] is not Segment.AUDIO

    @property
    def reads_aloud(self) -> bool:
        """True if the model reads the text of the last turn aloud."""
        return self.name in READ_ALOUD and self.needs == ("text",)

    @property
    def writes_down(self) -> bool:
        """True if the reply is a transcript of the last turn's recording."""
        return self.name in WRITTEN_DOWN and not self.speaks

    @property
    def has_audio_segment(self) -> bool:
        """True if the reply has an audio-only segment, whose maximum length a request may set."""
        return Segment.AUDIO in self.segments


AUTO = "auto"  # lets the model choose the language


@dataclass(frozen=True)
class Languages:
    """Languages that a request may name; a family with other rules has a subclass."""

    names: tuple[str, ...] = ()

    def choose(self, requested: Any) -> str | None:
        """Return the requested language, or None to let the model choose; raise InvalidRequest if it is unknown."""
        if requested is None:
            return None
        choices = (AUTO, *self.names) if self.names else ()
        name = requested.lower() if isinstance(requested, str) else None
        if name not in choices:
            expected = f"one of {', '.join(choices)}" if choices else "no value (this model does not accept a language)"
            raise InvalidRequest("options.language", expected, shown(requested))
        return None if name == AUTO else name

    def profile(self) -> Mapping[str, Any]:
        """Return further entries of the model's profile, which clients read."""
        return {}


@dataclass(frozen=True)
class DrawRules:
    """Family's rules for sampling the ids of a row.

    A family with rules of its own has a subclass: a frozen dataclass with its constants, which overrides some members.
    The functions are references (`plugin.lazy`) whose first argument is the rules, because most processes know a family
    without the engine.

    Attributes:
        penalized: Ids that a repetition penalty applies to. In the text, or in the audio of a family without text:
            `drawn` for generated ids of stream 0, `all` for ids of the prompt as well. `own` for those that the
            family's sampler counts. None if the family has no penalty.
        ends_audio: True if the family's sampler ends the audio, and no sampled id does.
        computes_first: True if the family's sampler computes stream 0 of audio rows and samples no id of it.
        word_column: Index, among the state columns, of the number of words that have begun: words of the track or,
            without one, spoken tokens of the generated text, which `TextCodec.matched` matches with words. None if the
            model reports no times of words.
        row_draw: Function of (rules, readout, `SegmentState`, `SlotTables`, `Arrays`, stream 0 of every slot by
            position [R, T]) that returns a `RowDraw` of the family. None for the engine's own.
        step_program: Function of (rules, readout, `SegmentRules`, `SlotTables`, stream 0 [R, T], buffer of hidden
            states [N, H]) that returns a `StepProgram`. In a family with latents, the maximum number of rows of a step
            and the solver steps to capture replace the buffer. None for the engine's own; if there is a `row_draw`,
            torch then samples on a GPU.
        reference: Function of (rules, `Prompt`) that returns the `stretto.testing.ReferenceRule` of a reply, which
            states the rules for the slow reference. None for the usual ones.
    """

    penalized: Literal["drawn", "all", "own"] | None = field(default=None, kw_only=True)

    ends_audio: ClassVar[bool] = False
    computes_first: ClassVar[bool] = False
    word_column: ClassVar[int | None] = None
    row_draw: ClassVar[Callable[..., Any] | None] = None
    step_program: ClassVar[Callable[..., Any] | None] = None
    reference: ClassVar[Callable[..., Any] | None] = None

    @property
    def counts_ids(self) -> bool:
        """True if the repetition penalty needs a table of the ids that a reply contains."""
        return self.penalized in ("drawn", "all")

    @property
    def state(self) -> Mapping[str, int]:
        """Names of the family's state columns, and their values before a reply.

        They are integers of each reply, which the engine stores after those of `engine.rules.STATE`, sends to the host
        with each row, and restores after a preemption.
        """
        return {}

    @property
    def prompt_end(self) -> int | None:
        """Id of stream 0 with which every prompt of latents ends; None for any id."""
        return None

    def sampled_ids(self, ids: Sequence[int]) -> list[int]:
        """Return those of the sorted `ids` of stream 0 in audio that the model may sample."""
        return list(ids)

    def num_text_entries(self, max_rows: int) -> int:
        """Return the size of a slot's table of texts, in replies of at most `max_rows` rows.

        The table has the entries of a track that are not read row by row, or entries that the rows write.
        """
        return 0

    def written_entries(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the entries of a slot's table that the rows of a preempted reply with the text `ids` have written."""
        return ()


SAME_END = -1  # stands for `end_of_reply` of the family


@dataclass(frozen=True)
class Family:
    """Description of a published model family: everything except the weights.

    Attributes:
        end_of_reply: Id of stream 0 in the row that ends the reply; this row is not read by the model.
        end_of_text: Id of stream 0 in the row that ends a text followed by audio; default: `end_of_reply`. If None, the
            sampled id is kept, and the transition follows immediately if a limit ended the text.
        end_of_audio: Id of stream 0 in the row that ends the audio; default: `end_of_reply`.
        transition: Ids forced on stream 0, one per row, between the text and the audio segment.
        guided_streams: Output streams with classifier-free guidance in the audio segment.
        voice_details: Facts that the publisher states about voices, keyed by name; only those in `voices` count.
        tags: Tags in a text, such as `[laugh]`, that the model renders as a sound or a manner of speaking.
        options: Options that not every family takes (`FamilyOption`).
        frame_rate: Frames per second of the codec; 0 if the engine cannot convert seconds to frames.
        drawn_ends: Ids that the model samples to end a segment, if these differ from the ids above.
        warm_up, tail: The two ends of the delay pattern (see the drawings in `streams/layout.py`).
        has_stream_bias: True if the checkpoint has `stream_bias.weight` [S, H], which is added to the hidden state
            before each head.
        subwords: Ids of the tokens of the checkpoint's tokenizer, in its order; None if the family needs no tokenizer.
        markers: Ids that occur only in prompts, keyed by their names in the checkpoint.
        drawing: How rows are sampled, beyond temperature, top-k, top-p and min-p.
        depth: Depth transformer, which samples the streams 1 to S - 1 of a row one after the other; None if all streams
            are sampled together from the row's hidden state.
        end_frame: Ids of stream 0 and the streams that follow it. An audio row that begins with these ids ends the
            audio; such a family's stream 0 never samples `end_of_audio` itself.
        track: Input-only streams whose ids are known before the row is sampled: streamed text (`TextTrack`), a
            recording's codes (`CodeTrack`) or the family's own (`InputTrack`). None if there are none.
        has_text_beside_codes: True if stream 0 of audio rows carries the reply's text, one token per frame.
        audio_head: Head of the checkpoint in place of one over the vocabulary: `audio_head.weight` [n, H], alone
            (`plain`) or with `audio_head.bias` [n] (`biased`). It contains the heads of all output streams in audio
            segments, one after the other. The rows for the ids that end stream 0 follow the rows for its codes.
    """

    name: str
    layout: StreamLayout
    tasks: tuple[Task, ...]
    codec: str
    end_of_reply: int
    end_of_text: int | None = SAME_END
    end_of_audio: int = SAME_END
    transition: tuple[int, ...] = ()
    guided_streams: tuple[int, ...] = ()
    unconditional: UnconditionalContext = UNGUIDED
    voices: tuple[str, ...] = ()
    voice_details: Mapping[str, VoiceDetails] = field(default_factory=dict, hash=False)
    languages: Languages = Languages()
    tags: tuple[str, ...] = ()
    options: tuple[FamilyOption, ...] = ()
    max_text_chars: int = 0
    max_audio_s: float = 0.0
    max_model_len: int = 0
    frame_rate: float = 0.0
    first_chunk_frames: int = field(default=4)
    steady_chunk_frames: int = field(default=25)
    drawn_ends: tuple[int, ...] = ()
    warm_up: WarmUp = PADDED_WARM_UP
    tail: Tail = FORCED_TAIL
    has_stream_bias: bool = False
    subwords: range | None = None
    markers: Mapping[str, int] = field(default_factory=dict, hash=False)
    drawing: DrawRules = DrawRules()
    depth: DepthSpec | None = None
    end_frame: tuple[int, ...] = ()
    track: InputTrack | None = None
    has_text_beside_codes: bool = False
    audio_head: Literal["plain", "biased"] | None = None
    mechanism: Mechanism = NO_MECHANISM

    def __post_init__(self) -> None:
        for name in ("end_of_text", "end_of_audio"):
            if getattr(self, name) == SAME_END:
                object.__setattr__(self, name, self.end_of_reply)

    @property
    def text_track(self) -> TextTrack | None:
        """The track if it is streamed text, otherwise None."""
        return self.track if isinstance(self.track, TextTrack) else None

    @property
    def code_track(self) -> CodeTrack | None:
        """The track if it is the codes of a recording, otherwise None."""
        return self.track if isinstance(self.track, CodeTrack) else None

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks that the model generates or reads; 0 if it has no codes of its own."""
        if self.code_track is not None:
            return len(self.code_track.streams)
        return self.layout.num_codebooks

    @property
    def has_plain_frames(self) -> bool:
        """True if each row of audio has one frame of codes, all frames are decoded, and each step samples one row."""
        has_others = self.mechanism.steps or self.mechanism.pauses
        has_codes = self.layout.latents is None and bool(self.layout.codebook_streams)
        return has_codes and self.rows_per_frame == 1 and self.has_all_frames and not has_others

    def check_plain_frames(self, first_chunk: str) -> None:
        """Raise CheckpointError unless `has_plain_frames`, which the option `first_chunk` requires."""
        if not self.has_plain_frames:
            expected = f"null, because {self.name} does not generate one frame of codes with each row"
            raise CheckpointError(f"first_chunk: expected {expected}, got {first_chunk}")

    @property
    def has_all_frames(self) -> bool:
        """True if each audio row contains a frame, and all frames are decoded."""
        mechanism = self.mechanism
        text = self.text_track
        has_text_rows = text is not None and text.text_rows is not None
        return not (mechanism.frames or mechanism.speaker or has_text_rows)

    @property
    def samples_codes_apart(self) -> bool:
        """True if the streams after stream 0 may have sampling parameters of their own (`SamplingConfig.depth`)."""
        return self.depth is not None or any(task.sampling.depth is not None for task in self.tasks)

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """Guidance scales that the model accepts as an input, instead of CFG pairs; empty for most families."""
        conditions = self.mechanism.conditions
        return () if conditions is None else conditions.guidance_scales

    @property
    def max_voices(self) -> int:
        """Maximum number of named voices of a reply."""
        conditions = self.mechanism.conditions
        return 1 if conditions is None else conditions.max_voices

    @property
    def latent_size(self) -> int:
        """Number of elements of a frame's latent; 0 if frames consist of codes."""
        latents = self.layout.latents
        return 0 if latents is None else latents.size

    @property
    def guides_rows(self) -> bool:
        """True if latents are guided within a row, without a CFG pair: a task's default scale for them is not 1."""
        latents = [task.sampling.latents for task in self.tasks if task.sampling.latents is not None]
        return any(options.guidance_scale != 1.0 for options in latents)

    @property
    def pauses_s(self) -> tuple[float, ...]:
        """Pause lengths in seconds, for each of which a row contains a probability; empty for most families."""
        return () if self.mechanism.pauses is None else self.mechanism.pauses.lengths_s

    @property
    def num_row_words(self) -> int:
        """Number of words per row of engine output: one per output stream and pause probability."""
        return self.layout.num_output_streams + len(self.pauses_s)

    @property
    def rows_per_frame(self) -> int:
        """Number of audio rows per frame."""
        return self.layout.frame_codec.rows_per_frame

    def num_audio_rows(self, num_frames: int) -> int:
        """Return the number of rows of an audio segment of `num_frames` frames."""
        return num_frames * self.rows_per_frame + self.tail.num_closing_rows(self.layout.max_delay)

    @property
    def track_streams(self) -> range:
        """Input-only streams whose ids are known before the row is sampled; empty without a track."""
        return range(0) if self.track is None else self.track.streams

    @property
    def reads_text_by_row(self) -> bool:
        """True if row i of a reply reads id i of a streamed text, or if there is no streamed text."""
        return self.text_track is None or self.text_track.open is None

    @property
    def second_ids(self) -> range:
        """Ids of a second text stream that the depth transformer reads: the vocabulary's last ones, usually none."""
        num_ids = 0 if self.depth is None else self.depth.num_second_ids
        return range(self.layout.vocab_size)[self.layout.vocab_size - num_ids :]

    def times_words(self, task: Task) -> bool:
        """Return True if the model reports word times itself, without an aligner."""
        if task.speaks:
            return self.drawing.word_column is not None
        return self.code_track is not None

    @property
    def cloning_task(self) -> Task | None:
        """First task that speaks a text in the voice of a recording; None if there is none."""
        tasks = (task for task in self.tasks if task.speaks and task.needs == ("text",) and "audio" in task.system)
        return next(tasks, None)

    def task(self, name: str) -> Task:
        """Return the task called `name`; if there is none, raise KeyError with the known names."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(f"{name!r} is not one of {[task.name for task in self.tasks]}")


AnyVocabulary = TypeVar("AnyVocabulary", bound=Vocabulary)


def builder(
    vocabulary: type[AnyVocabulary], family: Callable[[AnyVocabulary], Family]
) -> Callable[[Mapping[str, Any] | None], Family]:
    """Return a plug-in's `build`, given a vocabulary class and the function from a vocabulary to its family."""
    return lambda record: family(vocabulary.from_record(record) if record else vocabulary())
