"""What a caller may ask of the sampler, per segment and per reply. It knows no transport and no vLLM."""

from dataclasses import dataclass
from typing import Literal, get_args

from stretto.errors import InvalidRequest
from stretto.records.json_record import JsonRecord

GuidancePolicy = Literal["always", "until_s", "adaptive"]
MAX_RAS_WINDOW = 512
# Of a temperature that is not 0: a logit divided by less may be infinite, and no logit is larger than another then.
MIN_TEMPERATURE = 1e-6
MAX_UNTIL_S = 1e6
MAX_GUIDANCE_SCALE = 100.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.1, 10.0
POLICIES: tuple[GuidancePolicy, ...] = get_args(GuidancePolicy)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not _is_number(value) or not low <= value <= high:  # also refuses NaN
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
    """How ids are drawn; temperature 0 is greedy, top_k 0 and top_p 1 are off."""

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
    """How the rows of one segment are drawn, and how many there may be."""

    min_rows: int = 0
    max_rows: int = 2048

    def check(self, name: str) -> None:
        """As of its ids."""
        CodeSampling.check(self, name)
        _check_integer(f"{name}.max_rows", self.max_rows, 1, 1 << 20)
        _check_integer(f"{name}.min_rows", self.min_rows, 0, self.max_rows)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Sampling of one reply. `guidance_scale` 1 is unguided; `seed` is always set when it reaches the engine.

    script_temperature: temperature of the script pointer's stay-or-advance draw (0: advance when P > 1/2).
    policy: which frames are guided: all of them, those of the first `guided_until_s` seconds of audio, or, with
    `adaptive`, all for which the engine is fast enough.
    ras_window, ras_max_repeats: a code that came `ras_max_repeats` times in the last `ras_window` rows of its stream's
    audio is drawn again from the softmax of all logits, without temperature, top-k and top-p; window 0 is off.
    min_p: in audio, ids of stream 0 that are less than this times as likely as the likeliest are left out, before top-k
    and top-p; 0 is off.
    schedule: which rows of the reply modules say, of a family that has such, by name or by its numbers; None for its
    default.
    repetition_penalty: what the logits of ids that came before are divided by, or multiplied with where they are
    negative, in what is drawn on stream 0; 1 is off. Which ids count is the family's rule.
    depth: how a depth transformer's streams are drawn; None: as stream 0 in audio.
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
        """How the streams 1 ... are drawn in audio."""
        return self.audio if self.depth is None else self.depth

    def to_json(self) -> bytes:
        """This configuration as JSON."""
        return _JSON.write(self)

    @classmethod
    def from_json(cls, field: str, text: bytes) -> "SamplingConfig":
        """The inverse of `to_json`; InvalidRequest, naming `field` or an option, for anything else."""
        return _JSON.read(field, text)

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


_JSON: JsonRecord[SamplingConfig] = JsonRecord(SamplingConfig)
