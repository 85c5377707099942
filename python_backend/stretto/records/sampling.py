"""Request options: sampling parameters per segment, guidance, output format, shared-memory ring, chunk sizes."""

import secrets
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from stretto.errors import InvalidRequest
from stretto.records.json_record import JsonRecord, limits_of
from stretto.streams.chunking import ChunkPolicy
from stretto_client.schema import (
    OBJECT,
    POLICIES,
    CudaHandle,
    Device,
    Encoding,
    GuidancePolicy,
    OptionsRecord,
    RingName,
    SampleRate,
)

FIELD = "options.output.ring"


@dataclass(frozen=True, slots=True)
class RingAddress:
    """Shared-memory name of a ring's header and, for slots in GPU memory, their CUDA IPC handle and device number."""

    name: Annotated[RingName, limits_of(RingName)]
    cuda_handle: Annotated[CudaHandle, limits_of(CudaHandle)] | None = None
    device: Annotated[Device, limits_of(Device)] = 0


MAX_RAS_WINDOW = 512
# Smallest temperature above 0. Division by a smaller one could turn several logits into infinity and make them equal.
MIN_TEMPERATURE = 1e-6
MAX_UNTIL_S = 1e6
MAX_GUIDANCE_SCALE = 100.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.1, 10.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not _is_number(value) or not low <= value <= high:  # also rejects NaN
        raise InvalidRequest(f"options.{name}", f"a number in [{low}, {high}]", repr(value))


def _check_integer(name: str, value: int, low: int, high: int) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        raise InvalidRequest(f"options.{name}", f"an integer in [{low}, {high}]", repr(value))


def _check_temperature(name: str, value: float) -> None:
    _check(name, value, 0.0, 10.0)
    if 0 < value < MIN_TEMPERATURE:
        raise InvalidRequest(f"options.{name}", f"0 or a number in [{MIN_TEMPERATURE}, 10.0]", value)


@dataclass(frozen=True, slots=True)
class CodeSampling:
    """Sampling parameters: temperature (0 is greedy), top_k (0 is off) and top_p (1 is off)."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0

    def check(self, name: str) -> None:
        """Raise InvalidRequest if a field is out of range; `name` is the name of this object in the message."""
        _check_temperature(f"{name}.temperature", self.temperature)
        _check_integer(f"{name}.top_k", self.top_k, 0, 1 << 20)
        _check(f"{name}.top_p", self.top_p, 1e-6, 1.0)


@dataclass(frozen=True, slots=True)
class SegmentSampling(CodeSampling):
    """Sampling parameters of one segment, and its minimum and maximum length in rows."""

    min_rows: int = 0
    max_rows: int = 2048

    def check(self, name: str) -> None:
        """Raise InvalidRequest if a field is out of range; `name` is the name of this object in the message."""
        CodeSampling.check(self, name)
        _check_integer(f"{name}.max_rows", self.max_rows, 1, 1 << 20)
        _check_integer(f"{name}.min_rows", self.min_rows, 0, self.max_rows)


MAX_TAIL_ROWS = 64


@dataclass(frozen=True, slots=True)
class LatentSampling:
    """Parameters of replies whose frames are latents (`LatentSpec`).

    The temperature of the audio segment is the variance of the solver's initial noise.

    Attributes:
        steps: Number of solver steps.
        tail_rows: Number of frames to keep, beginning with the frame where the end of speech is detected.
        guidance_scale: Scale of classifier-free guidance within the predictor (`LatentSpec.is_guided`); 1 is unguided.
    """

    steps: int = 1
    tail_rows: int = 1
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_integer("latents.steps", self.steps, 1, 1 << 20)
        _check_integer("latents.tail_rows", self.tail_rows, 0, MAX_TAIL_ROWS)
        _check("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE_SCALE)

    def check_steps(self, allowed: range) -> None:
        """Raise InvalidRequest unless `steps` is in `allowed`, the step counts that the family supports."""
        if self.steps not in allowed:
            expected = f"an integer in [{allowed.start}, {allowed.stop - 1}]"
            raise InvalidRequest("options.latents.steps", expected, self.steps)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Sampling parameters of one reply.

    Attributes:
        text: Parameters of text segments.
        audio: Parameters of audio segments.
        guidance_scale: Scale of classifier-free guidance; 1 is unguided.
        script_temperature: Temperature of the alignment pointer's stay-or-advance decision (0: advance if P > 1/2).
        seed: Seed of the sampling noise; set before the request is sent to the engine.
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
        latents: Parameters of frames that are latents; None for families without them.
    """

    text: SegmentSampling
    audio: SegmentSampling
    guidance_scale: float = 1.0
    script_temperature: float = 1.0
    seed: int | None = None
    policy: GuidancePolicy = "always"
    guided_until_s: float | None = None
    ras_window: int = 0
    ras_max_repeats: int = 2
    min_p: float = 0.0
    schedule: str | tuple[int, ...] | None = None
    repetition_penalty: float = 1.0
    depth: CodeSampling | None = None
    latents: LatentSampling | None = None

    @property
    def is_guided(self) -> bool:
        """True if the reply needs a CFG pair."""
        return self.guidance_scale != 1.0

    def with_seed(self) -> "SamplingConfig":
        """Return a copy with a random 32-bit seed, which JSON represents exactly, or self if a seed is set."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(32))

    def __post_init__(self) -> None:
        self.text.check("text")
        self.audio.check("audio")
        if self.depth is not None:
            self.depth.check("depth")
        _check("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE_SCALE)
        _check_temperature("script_temperature", self.script_temperature)
        _check_integer("audio.ras_window", self.ras_window, 0, MAX_RAS_WINDOW)
        _check_integer("audio.ras_max_repeats", self.ras_max_repeats, 1, MAX_RAS_WINDOW)
        _check("audio.min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        self._check_policy()
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, (1 << 63) - 1)

    @property
    def codes(self) -> CodeSampling:
        """Sampling parameters of streams 1 to S - 1 in audio segments."""
        return self.audio if self.depth is None else self.depth

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "SamplingConfig":
        """Create the configuration from the fields in `record`, where tuples may have become lists."""
        fields = {"text": SegmentSampling(**record["text"]), "audio": SegmentSampling(**record["audio"])}
        depth, schedule, latents = record["depth"], record["schedule"], record["latents"]
        return cls(
            **record
            | fields
            | {
                "depth": None if depth is None else CodeSampling(**depth),
                "schedule": tuple(schedule) if isinstance(schedule, list) else schedule,
                "latents": None if latents is None else LatentSampling(**latents),
            }
        )

    def _check_policy(self) -> None:
        until_s = self.guided_until_s
        if self.policy not in POLICIES:
            raise InvalidRequest("options.guidance.policy", f"one of {', '.join(POLICIES)}", repr(self.policy))
        if self.policy != "until_s":
            if until_s is not None:
                raise InvalidRequest("options.guidance.until_s", f"no value under policy {self.policy!r}", until_s)
        elif until_s is None:
            raise InvalidRequest("options.guidance.until_s", "a number of seconds, because policy is 'until_s'", "none")
        elif not _is_number(until_s) or not 0.0 < until_s <= MAX_UNTIL_S:
            expected = f"a number of seconds in (0, {MAX_UNTIL_S:.0f}]"
            raise InvalidRequest("options.guidance.until_s", expected, repr(until_s))


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Output format of mono samples: float32 in [-1, 1] or int16.

    Attributes:
        encoding: Sample format.
        sample_rate: Sample rate in Hz; None for the codec's sample rate.
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
        resume_s: Time for which a live session outlasts its connection, in seconds.
        with_pauses: True to add pause probabilities to the events of a transcript.
        with_progress: True to add the progress of the transcript to the events of a live session.
    """

    form: OutputForm = field(default_factory=OutputForm)
    chunking: ChunkPolicy = field(default_factory=ChunkPolicy)
    with_codes: bool = False
    resume_s: float = 0.0
    with_pauses: bool = False
    with_progress: bool = False


OPTIONS: JsonRecord[OptionsRecord] = JsonRecord(Annotated[OptionsRecord, OBJECT])
