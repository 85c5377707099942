"""The `options` of a request: JSON over the defaults of its task, to a typed sampling configuration."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from stretto.errors import InvalidRequest
from stretto.families.base import Family, Task
from stretto.preprocessing.delivery import DELIVERY_KEYS, read_delivery
from stretto.preprocessing.json_field import read_json, shown
from stretto.records.delivery import Delivery
from stretto.records.sampling import MAX_GUIDANCE_SCALE, POLICIES, SamplingConfig, SegmentSampling
from stretto.streams.segment import Segment


@dataclass(frozen=True, slots=True)
class Options:
    """How the reply is drawn, the voice it is spoken in (None where the task does not speak), and how it is sent."""

    sampling: SamplingConfig
    voice: str | None
    delivery: Delivery = field(default_factory=Delivery)


def read_options(text: str | None, family: Family, task: Task, frame_rate: float, held_frames: int = 0) -> Options:
    """The options in `text` (JSON, None for none) over the defaults of `task`.

    frame_rate, held_frames: the codec's frames per second, and its right context.
    """
    record = _record("options", {} if text is None else read_json("options", text), KEYS)
    speaks = Segment.AUDIO in task.segments
    for key in sorted(SPEECH_KEYS & record.keys()):
        if not speaks:
            raise InvalidRequest(f"options.{key}", f"nothing: task {task.name!r} does not speak", shown(record[key]))
    sampling = SamplingConfig(
        text=_segment("text", record, task.sampling.text, family, not speaks),
        audio=_max_audio(record, _segment("audio", record, task.sampling.audio, family, speaks), family, frame_rate),
        script_temperature=_number("script_temperature", record, task.sampling.script_temperature),
        seed=_integer("seed", record, None),
        **_repetition(record, task.sampling),
        **_guidance(record, task.sampling),
    )
    delivery = read_delivery(record, family, frame_rate, held_frames)
    return Options(sampling, _voice(record, family) if speaks else None, delivery)


def _record(field: str, value: Any, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(field, "a JSON object", shown(value))
    unknown = sorted(value.keys() - known)
    if unknown:
        raise InvalidRequest(
            f"{field}.{shown(unknown[0])[1:-1]}", f"one of {', '.join(sorted(known))}", "an unknown key"
        )
    return value


def _number(key: str, record: dict[str, Any], default: float, path: str = "options") -> float:
    value = record.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{path}.{key}", "a number", shown(value))
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidRequest(f"{path}.{key}", "a number that fits 64 bits", shown(value)) from error


def _integer(key: str, record: dict[str, Any], default: int | None, path: str = "options") -> int | None:
    value = record.get(key, default)
    if key in record and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidRequest(f"{path}.{key}", "an integer", shown(value))
    return value


READERS: dict[str, Callable[..., Any]] = {
    "temperature": _number,
    "top_k": _integer,
    "top_p": _number,
    "min_rows": _integer,
    "max_rows": _integer,
}
REPETITION_KEYS = frozenset({"ras_window", "ras_max_repeats"})  # under `audio`
SHORTHANDS = frozenset({"temperature", "top_k", "top_p"})  # at the top level: of the segment that the task ends with
SPEECH_KEYS = (
    frozenset({"voice", "max_audio_s", "audio", "guidance", "guidance_scale", "script_temperature"}) | DELIVERY_KEYS
)
KEYS = SPEECH_KEYS | SHORTHANDS | {"text", "seed"}


def _segment(
    name: str, record: dict[str, Any], defaults: SegmentSampling, family: Family, takes_shorthands: bool
) -> SegmentSampling:
    path = f"options.{name}"
    known = frozenset(READERS) | (REPETITION_KEYS if name == "audio" else frozenset())
    given = _record(path, record.get(name, {}), known)
    given = {key: value for key, value in given.items() if key in READERS}
    for key in sorted(SHORTHANDS & record.keys()) if takes_shorthands else ():
        if key in given:
            raise InvalidRequest(f"options.{key}", f"either {key} or {name}.{key}", "both")
        READERS[key](key, record, None)
        given[key] = record[key]
    values = {key: READERS[key](key, given, None, path) for key in given}
    if values.get("max_rows", 0) > family.max_model_len:
        raise InvalidRequest(f"{path}.max_rows", f"at most {family.max_model_len} rows", values["max_rows"])
    least = 1 + family.tail.num_closing_rows(family.layout.max_delay) if name == "audio" else 1
    if 0 < values.get("max_rows", least) < least:
        raise InvalidRequest(
            f"{path}.max_rows", f"at least {least} rows, as {least - 1} begin no frame", values["max_rows"]
        )
    sampling = _within_max_rows(replace(defaults, **values), values)
    sampling.check(name)
    return sampling


def _within_max_rows(sampling: SegmentSampling, given: dict[str, Any]) -> SegmentSampling:
    """`sampling`, the family's own least number of rows no more than the most that the caller allows."""
    if "min_rows" in given or given.get("max_rows", 1) < 1:
        return sampling
    return replace(sampling, min_rows=min(sampling.min_rows, sampling.max_rows))


def _max_audio(record: dict[str, Any], audio: SegmentSampling, family: Family, frame_rate: float) -> SegmentSampling:
    if "max_audio_s" not in record:
        return audio
    seconds = _number("max_audio_s", record, 0.0)
    num_closing_rows = family.tail.num_closing_rows(family.layout.max_delay)
    low, high = 1 / frame_rate, (audio.max_rows - num_closing_rows) / frame_rate
    if not low <= seconds <= high:
        raise InvalidRequest("options.max_audio_s", f"seconds in [{low:g}, {high:g}]", seconds)
    # The small term keeps 0.28 s at 25 Hz at 7 frames, which floating point takes to 7.000000000000001 or 6.99….
    rows = max(1, int(seconds * frame_rate + 1e-6)) + num_closing_rows
    return _within_max_rows(replace(audio, max_rows=rows), record.get("audio", {}))


def _repetition(record: dict[str, Any], defaults: SamplingConfig) -> dict[str, Any]:
    """The fields of SamplingConfig that say when a code is drawn again; `_segment` knows which keys there may be."""
    given = record.get("audio", {})
    return {key: _integer(key, given, getattr(defaults, key), "options.audio") for key in sorted(REPETITION_KEYS)}


def _guidance(record: dict[str, Any], defaults: SamplingConfig) -> dict[str, Any]:
    """The fields of SamplingConfig that say how far and how long a reply is guided."""
    scale, policy, until_s = defaults.guidance_scale, defaults.policy, defaults.guided_until_s
    if "guidance" not in record:
        scale = _number("guidance_scale", record, scale)
        return {"guidance_scale": scale, "policy": policy, "guided_until_s": until_s}
    if "guidance_scale" in record:
        raise InvalidRequest("options.guidance", "either guidance or guidance_scale", "both")
    path = "options.guidance"
    guidance = _record(path, record["guidance"], frozenset({"scale", "policy", "until_s"}))
    scale = _number("scale", guidance, scale, path)
    if not 0.0 <= scale <= MAX_GUIDANCE_SCALE:
        raise InvalidRequest(f"{path}.scale", f"a number in [0.0, {MAX_GUIDANCE_SCALE}]", scale)
    if "policy" in guidance:
        policy, until_s = guidance["policy"], None
        if policy not in POLICIES:
            raise InvalidRequest(f"{path}.policy", f"one of {', '.join(POLICIES)}", shown(policy))
    if "until_s" in guidance:
        until_s = _number("until_s", guidance, 0.0, path)
    return {"guidance_scale": scale, "policy": policy, "guided_until_s": until_s}


def _voice(record: dict[str, Any], family: Family) -> str | None:
    voice = record.get("voice", family.voices[0] if family.voices else None)
    if "voice" in record and voice not in family.voices:
        expected = f"one of {', '.join(family.voices)}" if family.voices else "none: this model has no voices by name"
        raise InvalidRequest("options.voice", expected, shown(voice))
    return voice
