"""Request options: sampling parameters per segment, guidance, output format, shared-memory ring, chunk sizes."""

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

from stretto.errors import InvalidRequest, shown
from stretto.records.json_record import JsonRecord, limits_of
from stretto.streams.chunking import ChunkPolicy
from stretto_contract.schema import (
    MOST_ROWS,
    OBJECT,
    POLICIES,
    Encoding,
    Expected,
    GuidancePolicy,
    GuidanceScale,
    GuidedTime,
    MaxRows,
    MinP,
    MinRows,
    OptionsRecord,
    RasMaxRepeats,
    RasWindow,
    RepetitionPenalty,
    RingMemory,
    RingName,
    SampleRate,
    Seed,
    Steps,
    Temperature,
    TopK,
    TopP,
    integer,
)
from stretto_contract.speech_checks import MAX_ATTEMPTS

FIELD = "options.output.ring"


@dataclass(frozen=True, slots=True)
class RingAddress:
    """Shared-memory name of a ring's header, and the memory of its slots."""

    name: Annotated[RingName, limits_of(RingName)]
    memory: RingMemory = "system"


MAX_REDRAWS = MAX_ATTEMPTS - 1
# Smallest temperature above 0. Division by a smaller one could turn several logits into infinity and make them equal.
MIN_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True)
class Option:
    """Sampling option that is one number for a whole reply; metadata of its field in `SamplingConfig`.

    The preprocessor reads the option, and a checkpoint may set its default. Families with latents reject it. The
    samplers read the values of all rows as a column.

    Attributes:
        off: Value that has no effect; None if every value may have one.
        to_column: Function that returns the column's number; None for the option's value.
        column_off: Number in the column that has no effect; None for `off`.
        is_for_first: True if it only limits the ids of stream 0 in audio (`engine.kernels.logit_options`).
    """

    name: str
    off: float | None = None
    to_column: "Callable[[SamplingConfig], float] | None" = None
    column_off: float | None = None
    is_for_first: bool = False


def logit_span(sampling: "SamplingConfig") -> float:
    """Return the distance below the largest logit of stream 0 within which min-p keeps logits.

    It is infinite if min-p is off or sampling is greedy. It is not computed for a batch of rows, because vectorised
    logarithms may depend on a row's position in the batch.
    """
    temperature = sampling.audio.temperature
    if sampling.min_p == 0 or temperature == 0:
        return math.inf
    return -temperature * math.log(sampling.min_p)


# Names of the other options, where they differ from the names of the fields.
OPTION_NAMES = {"guided_until_s": "guidance.until_s", "latents.guidance_scale": "guidance_scale"}


def check_ranges(record: Any, path: str = "") -> None:
    """Raise InvalidRequest if a field of a dataclass is outside the range that the schema states for its option."""
    for name, expected, may_be_none in _ranges(record.__class__):
        value = getattr(record, name)
        if not (may_be_none and value is None) and not expected.admits(value):
            raise InvalidRequest(f"options.{option_name(path + name)}", expected.description, repr(value))


@cache
def _ranges(record: Any) -> tuple[tuple[str, Expected, bool], ...]:
    """Return, for each field with a range: its name, the range, and True if the value may be None."""
    ranges_by_name = []
    for name, hint in get_type_hints(record, include_extras=True).items():
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        marks = [mark for member in members for mark in getattr(member, "__metadata__", ())]
        ranges = [mark for mark in marks if isinstance(mark, Expected) and mark.kind]
        ranges_by_name += [(name, expected, type(None) in members) for expected in ranges]
    return tuple(ranges_by_name)


def option_name(field: str) -> str:
    """Return the name of the option for a field of `SamplingConfig` or of one of its parts."""
    return NUMBER_OPTIONS[field].name if field in NUMBER_OPTIONS else OPTION_NAMES.get(field, field)


def check_temperature(name: str, value: float) -> None:
    """Raise InvalidRequest if a temperature is too close to 0."""
    if 0 < value < MIN_TEMPERATURE:
        raise InvalidRequest(f"options.{name}", f"0 or a number in [{MIN_TEMPERATURE}, 10.0]", value)


@dataclass(frozen=True, slots=True)
class CodeSampling:
    """Sampling parameters: temperature (0 is greedy), top_k (0 is off) and top_p (1 is off)."""

    temperature: Temperature
    top_k: TopK = 0
    top_p: TopP = 1.0


@dataclass(frozen=True, slots=True)
class SegmentSampling(CodeSampling):
    """Sampling parameters of one segment, and its minimum and maximum length in rows."""

    min_rows: MinRows = 0
    max_rows: MaxRows = 2048

    def within(self, num_rows: int) -> Self:
        most = min(self.max_rows, num_rows)
        return replace(self, min_rows=min(self.min_rows, most), max_rows=most)


@dataclass(frozen=True, slots=True)
class LatentSampling:
    """Parameters of replies whose frames are latents (`LatentSpec`).

    The temperature of the audio segment is the variance of the solver's initial noise.

    Attributes:
        steps: Number of solver steps.
        tail_rows: Number of frames to keep from the one in which the end of speech is detected.
        guidance_scale: Scale of guidance within the predictor (`Family.guides_rows`); 1 is unguided.
    """

    steps: Steps = 1
    tail_rows: Annotated[int, integer(0, 64)] = 1
    guidance_scale: GuidanceScale = 1.0


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Sampling parameters of one reply.

    Creating one checks nothing: `check_sampling` checks the values of a request or a Python program, and a task checks
    its defaults.

    Attributes:
        guidance_scale: Scale of classifier-free guidance; 1 is unguided.
        script_temperature: Temperature of the alignment pointer's stay-or-advance decision (0: advance if P > 1/2).
        seed: Seed of the sampling noise; set before the request is sent to the engine.
        redraw_from: Ascending audio frames. From each one on, sampling uses new noise; earlier frames stay the same.
        policy: Frames to guide: all (`always`), those in the first `guided_until_s` seconds of audio (`until_s`), or
            as many as the engine's speed permits (`adaptive`).
        ras_window: Window of repetition-aware sampling in rows; 0 is off.
        ras_max_repeats: Number of occurrences in the window at which a code is sampled again from the softmax of all
            logits, without temperature, top-k and top-p. This also applies at temperature 0.
        min_p: Minimum probability of a stream-0 id in an audio segment, as a fraction of the highest probability. Less
            likely ids are dropped before top-k and top-p. 0 is off.
        schedule: Numbers of rows that the main model and the MCTP modules generate alternately, or the name of such a
            schedule; None for the family's default.
        repetition_penalty: Penalty for stream-0 ids that occurred before: positive logits are divided by it, negative
            logits multiplied by it. 1 is off. The family defines which ids count.
        depth: Sampling parameters of the depth transformer; None to use `audio`.
    """

    text: SegmentSampling
    audio: SegmentSampling
    guidance_scale: GuidanceScale = 1.0
    script_temperature: Annotated[Temperature, Option("script_temperature", 1.0)] = 1.0
    seed: Seed | None = None
    redraw_from: tuple[int, ...] = ()
    policy: GuidancePolicy = "always"
    guided_until_s: GuidedTime | None = None
    ras_window: Annotated[RasWindow, Option("audio.ras_window", 0)] = 0
    ras_max_repeats: Annotated[RasMaxRepeats, Option("audio.ras_max_repeats")] = 2
    min_p: Annotated[MinP, Option("audio.min_p", 0.0, logit_span, math.inf, is_for_first=True)] = 0.0
    schedule: str | tuple[int, ...] | None = None
    repetition_penalty: Annotated[RepetitionPenalty, Option("repetition_penalty", 1.0)] = 1.0
    depth: CodeSampling | None = None
    latents: LatentSampling | None = None

    @property
    def columns(self) -> dict[str, float]:
        """Column numbers of the options in `NUMBER_OPTIONS`, keyed by the name of the field."""
        options = NUMBER_OPTIONS.items()
        return {name: option.to_column(self) if option.to_column else getattr(self, name) for name, option in options}

    @property
    def has_pair(self) -> bool:
        return self.guidance_scale != 1.0

    def with_seed(self) -> "SamplingConfig":
        """Return a copy with a random 32-bit seed, which JSON represents exactly, or self if a seed is set."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(32))

    def check(self) -> None:
        """Raise InvalidRequest if a value is outside the range of its option, or values contradict each other."""
        for path, sampling in (("text.", self.text), ("audio.", self.audio), ("depth.", self.depth)):
            check_ranges(sampling, path)
        if self.latents is not None:
            check_ranges(self.latents, "latents.")
        check_ranges(self)
        frames = self.redraw_from
        are_frames = isinstance(frames, tuple) and all(integer(0, MOST_ROWS).admits(frame) for frame in frames)
        if not are_frames or len(frames) > MAX_REDRAWS or sorted(frames) != [*frames]:
            expected = f"at most {MAX_REDRAWS} integers in [0, {MOST_ROWS}], in ascending order"
            raise InvalidRequest("options.redraw_from", expected, shown(frames))
        self.check_relations()

    def check_relations(self) -> None:
        """Raise InvalidRequest if values that are within their ranges contradict each other or cannot be computed."""
        for path, segment in (("text", self.text), ("audio", self.audio)):
            check_temperature(f"{path}.temperature", segment.temperature)
            if segment.min_rows > segment.max_rows:
                expected = f"an integer in [0, {segment.max_rows}]"
                raise InvalidRequest(f"options.{path}.min_rows", expected, segment.min_rows)
        if self.depth is not None:
            check_temperature("depth.temperature", self.depth.temperature)
        check_temperature("script_temperature", self.script_temperature)
        self._check_policy()

    def draws_as(self, other: "SamplingConfig") -> bool:
        """Return True if rows are sampled from the same distribution as with `other`; seeds and lengths may differ."""
        return self._draws == other._draws

    @property
    def _draws(self) -> "SamplingConfig":
        """These parameters without seed and lengths, and with explicit values for all streams."""
        lengths = {"min_rows": 0, "max_rows": 1}
        codes = CodeSampling(self.codes.temperature, self.codes.top_k, self.codes.top_p)
        text = replace(self.text, **lengths)
        return replace(self, seed=None, redraw_from=(), text=text, audio=replace(self.audio, **lengths), depth=codes)

    @property
    def max_rows(self) -> tuple[int, int]:
        return self.text.max_rows, self.audio.max_rows

    @property
    def codes(self) -> CodeSampling:
        """Sampling parameters of streams 1 to S - 1 in audio segments."""
        return self.audio if self.depth is None else self.depth

    def _check_policy(self) -> None:
        until_s = self.guided_until_s
        if self.policy not in POLICIES:
            raise InvalidRequest("options.guidance.policy", f"one of {', '.join(POLICIES)}", repr(self.policy))
        if self.policy != "until_s":
            if until_s is not None:
                raise InvalidRequest("options.guidance.until_s", f"no value under policy {self.policy!r}", until_s)
        elif until_s is None:
            raise InvalidRequest("options.guidance.until_s", "a number of seconds, because policy is 'until_s'", "none")


def _numbers(record: type) -> dict[str, Option]:
    hints = get_type_hints(record, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: mark for name, many in marks.items() for mark in many if isinstance(mark, Option)}


# Options of one number each, keyed by the name of the field.
NUMBER_OPTIONS: Mapping[str, Option] = _numbers(SamplingConfig)


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Output format of mono samples: float32 in [-1, 1] or int16.

    Attributes:
        sample_rate: In Hz; None for the codec's.
        ring: Shared-memory ring for the samples, for a client on the same host; None to send them in the response.
        deterministic: True to decode without batching, so that the samples do not depend on other utterances.
    """

    encoding: Encoding = "pcm_f32le"
    sample_rate: Annotated[SampleRate, limits_of(SampleRate)] | None = None
    ring: RingAddress | None = None
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """Output format and chunk sizes of one utterance.

    Attributes:
        with_codes: True to add the codes of all streams to the events.
        resume_s: Time for which a live session outlasts its connection.
        with_pauses: True to add pause probabilities to the events of a transcript.
        with_progress: True to add the progress of the transcript to the events of a live session.
        default_first_frames: Default size of the first chunk on this server; 0 for the family's.
    """

    form: OutputForm = field(default_factory=OutputForm)
    chunking: ChunkPolicy = field(default_factory=ChunkPolicy)
    with_codes: bool = False
    resume_s: float = 0.0
    with_pauses: bool = False
    with_progress: bool = False
    default_first_frames: int = 0


OPTIONS: JsonRecord[OptionsRecord] = JsonRecord(Annotated[OptionsRecord, OBJECT])
