"""Request options: sampling per segment and reply, guidance, output format, ring and chunk sizes."""

import secrets
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from stretto.errors import InvalidRequest
from stretto.records.json_record import JsonRecord
from stretto.records.packed_record import limits_of
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
    """Name of the header's shared memory and, for slots on a GPU, IPC handle and device number."""

    name: Annotated[RingName, limits_of(RingName)]
    cuda_handle: Annotated[CudaHandle, limits_of(CudaHandle)] | None = None
    device: Annotated[Device, limits_of(Device)] = 0


MAX_RAS_WINDOW = 512
# Least temperature above 0: logits divided by less may overflow to infinity and become equal.
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
    """Parameters of a draw; temperature 0 is greedy, top_k 0 and top_p 1 are off."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0

    def check(self, name: str) -> None:
        """Raise InvalidRequest, naming `name`, unless every field is in its range."""
        _check_temperature(f"{name}.temperature", self.temperature)
        _check_integer(f"{name}.top_k", self.top_k, 0, 1 << 20)
        _check(f"{name}.top_p", self.top_p, 1e-6, 1.0)


@dataclass(frozen=True, slots=True)
class SegmentSampling(CodeSampling):
    """Sampling parameters and length limits of one segment."""

    min_rows: int = 0
    max_rows: int = 2048

    def check(self, name: str) -> None:
        """Raise InvalidRequest, naming `name`, unless every field is in its range."""
        CodeSampling.check(self, name)
        _check_integer(f"{name}.max_rows", self.max_rows, 1, 1 << 20)
        _check_integer(f"{name}.min_rows", self.min_rows, 0, self.max_rows)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Sampling parameters of one reply. `guidance_scale` 1 is unguided; `seed` is set before the engine gets it.

    Attributes:
        script_temperature: Temperature of the alignment pointer's stay-or-advance decision (0: advance if P > 1/2).
        policy: Guided frames: all, those of the first `guided_until_s` seconds of audio, or, for `adaptive`, all for
            which the engine is fast enough.
        ras_window: Window of repetition-aware sampling in rows; 0 is off.
        ras_max_repeats: Number of occurrences in the window from which on a code is sampled again, from the softmax of
            all logits without temperature, top-k and top-p. At temperature 0, too.
        min_p: Ids of stream 0 in audio less likely than this times the most likely one are dropped before top-k and
            top-p; 0 is off.
        schedule: Rows that MCTP modules generate, by name or as numbers; None for the family's default.
        repetition_penalty: Divisor of the logits of earlier ids of stream 0 (factor if negative); 1 is off. The family
            defines which ids count.
        depth: Sampling parameters of a depth transformer; None for those of stream 0 in audio.
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

    @property
    def is_guided(self) -> bool:
        """True if the reply needs a CFG pair. Every other part of the server asks here."""
        return self.guidance_scale != 1.0

    def with_seed(self) -> "SamplingConfig":
        """Return the parameters with a random seed of 32 bits, which JSON keeps exact, if they have none."""
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
        """Sampling parameters of streams 1 and up in audio."""
        return self.audio if self.depth is None else self.depth

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "SamplingConfig":
        """Return the configuration whose fields are in `record`; tuples may have become lists."""
        fields = {"text": SegmentSampling(**record["text"]), "audio": SegmentSampling(**record["audio"])}
        depth, schedule = record["depth"], record["schedule"]
        return cls(
            **record
            | fields
            | {
                "depth": None if depth is None else CodeSampling(**depth),
                "schedule": tuple(schedule) if isinstance(schedule, list) else schedule,
            }
        )

    def _check_policy(self) -> None:
        until_s = self.guided_until_s
        if self.policy not in POLICIES:
            raise InvalidRequest("options.guidance.policy", f"one of {', '.join(POLICIES)}", repr(self.policy))
        if self.policy != "until_s":
            if until_s is not None:
                raise InvalidRequest("options.guidance.until_s", f"nothing under policy {self.policy!r}", until_s)
        elif until_s is None:
            raise InvalidRequest("options.guidance.until_s", "seconds, as the policy is 'until_s'", "nothing")
        elif not _is_number(until_s) or not 0.0 < until_s <= MAX_UNTIL_S:
            expected = f"seconds, more than 0 and at most {MAX_UNTIL_S:,.0f}"
            raise InvalidRequest("options.guidance.until_s", expected, repr(until_s))


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Format of mono samples: float32 in [-1, 1] or int16, at `sample_rate` Hz (None: the codec's).

    Attributes:
        ring: Shared-memory ring that receives the samples instead of the response, for a client on this host.
        deterministic: True to decode without batching, so that no bit depends on other utterances.
    """

    encoding: Encoding = "pcm_f32le"
    sample_rate: Annotated[SampleRate, limits_of(SampleRate)] | None = None
    ring: RingAddress | None = None
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """Output format and chunk sizes of one utterance; `with_codes` adds the codes of all streams to the events."""

    form: OutputForm = field(default_factory=OutputForm)
    chunking: ChunkPolicy = field(default_factory=ChunkPolicy)
    with_codes: bool = False


OPTIONS: JsonRecord[OptionsRecord] = JsonRecord(Annotated[OptionsRecord, OBJECT])
