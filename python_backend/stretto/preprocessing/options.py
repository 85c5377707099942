"""Parsing of request options: output format, chunk sizes, and sampling parameters over the task's defaults."""

from dataclasses import dataclass, field, replace
from typing import Any

from stretto.errors import InvalidRequest, shown
from stretto.families.base import MAX_NUMBER, MAX_NUMBERS, Family, Task
from stretto.families.prompting import PLAIN, Manner, read_manner
from stretto.records.json_record import read_json
from stretto.records.sampling import (
    MAX_GUIDANCE_SCALE,
    OPTIONS,
    CodeSampling,
    Delivery,
    OutputForm,
    RingAddress,
    SamplingConfig,
    SegmentSampling,
)
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from stretto_client.schema import ChunkingOptions, OptionsRecord, SegmentOptions

MAX_CHUNK_S = 10.0


def read_delivery(
    options: OptionsRecord, family: Family, frame_rate: float, held_frames: int, blocks: tuple[int, ...] = ()
) -> Delivery:
    """Return the output format and the chunk sizes in a request's options.

    Args:
        options: The request's options.
        family: The model's family, which has the default chunk sizes.
        frame_rate: The codec's frames per second.
        held_frames: The codec's right context in frames.
        blocks: Block sizes, in frames, of a codec that decodes whole blocks, the last size repeated; empty for others.

    Raises:
        InvalidRequest: An option is outside its limits.
    """
    first, steady = family.first_chunk_frames, family.steady_chunk_frames
    default = ChunkPolicy(first, steady, frame_rate=frame_rate, held_frames=held_frames, blocks=blocks)
    output, policy = options.get("output", {}), _policy(options.get("chunking", {}), default)
    ring = RingAddress(**output["ring"]) if "ring" in output else None
    encoding = output.get("encoding", "pcm_f32le")
    form = OutputForm(encoding, output.get("sample_rate"), ring, policy.deterministic)
    return Delivery(form, policy, output.get("codes", False))


def _policy(given: ChunkingOptions, default: ChunkPolicy) -> ChunkPolicy:
    steady = given.get("steady_frames", default.steady_frames)
    first = given.get("first_frames", min(default.first_frames, steady))
    most = max(steady if "steady_frames" not in given else 1, int(MAX_CHUNK_S * default.frame_rate))
    for name, frames, limit in (("steady_frames", steady, most), ("first_frames", first, steady)):
        if not 1 <= frames <= limit:
            raise InvalidRequest(f"options.chunking.{name}", f"an integer in [1, {limit}]", frames)
    playout_s = given.get("playout_s", default.playout_s)
    is_fixed = given.get("deterministic", default.deterministic)
    return replace(default, first_frames=first, steady_frames=steady, playout_s=playout_s, deterministic=is_fixed)


@dataclass(frozen=True, slots=True)
class Options:
    """Parsed options of a request.

    Attributes:
        sampling: Sampling parameters of the reply.
        voice: Name of the voice; None if the task generates no speech or the family has no named voices.
        delivery: Output format and chunk sizes.
        manner: Speaking options except the voice.
        adapter: Name of the LoRA adapter, or None.
    """

    sampling: SamplingConfig
    voice: str | None
    delivery: Delivery = field(default_factory=Delivery)
    manner: Manner = PLAIN
    adapter: str | None = None


def read_options(
    text: str | None,
    family: Family,
    task: Task,
    frame_rate: float,
    held_frames: int = 0,
    blocks: tuple[int, ...] = (),
) -> Options:
    """Return the request's options, with the task's defaults for missing values.

    Args:
        text: JSON, or None.
        family: The model's family.
        task: The task.
        frame_rate: The codec's frames per second.
        held_frames: The codec's right context in frames.
        blocks: Block sizes, in frames, of a codec that decodes whole blocks, the last size repeated; empty for others.

    Raises:
        InvalidRequest: An option is unknown, unsupported or outside its limits.
    """
    options, defaults = _read("options", text, task), task.sampling
    speaks = Segment.AUDIO in task.segments  # with or without a preceding text segment
    shorthands = {key: value for key, value in options.items() if key in SHORTHANDS}
    in_text, in_audio = ({}, shorthands) if speaks else (shorthands, {})
    given = options.get("audio", {})
    audio = _segment("audio", given, in_audio, defaults.audio, family)
    sampling = replace(
        defaults,
        text=_segment("text", options.get("text", {}), in_text, defaults.text, family),
        audio=_max_audio(options, audio, family, frame_rate),
        script_temperature=options.get("script_temperature", defaults.script_temperature),
        seed=options.get("seed"),
        min_p=given.get("min_p", defaults.min_p),
        ras_window=given.get("ras_window", defaults.ras_window),
        ras_max_repeats=given.get("ras_max_repeats", defaults.ras_max_repeats),
        repetition_penalty=options.get("repetition_penalty", defaults.repetition_penalty),
        depth=_depth(options, family, audio) if "depth" in options else defaults.depth,
        schedule=_schedule(options, family) if "schedule" in options else defaults.schedule,
        **_guidance(options),
    )
    delivery = read_delivery(options, family, frame_rate, held_frames, blocks)
    adapter = options.get("adapter")
    if not task.speaks:
        return Options(sampling, None, delivery, adapter=adapter)
    return Options(sampling, _voice(options, family), delivery, read_manner(options, family), adapter)


def _read(field: str, text: str | None, task: Task) -> OptionsRecord:
    """Parse the options; raise InvalidRequest for speech options if the task generates no speech."""
    if text is None:
        return {}
    record = read_json(field, text)
    if isinstance(record, dict) and not task.speaks:
        for key in sorted(SPEECH_KEYS & record.keys()):
            raise InvalidRequest(f"{field}.{key}", f"nothing: task {task.name!r} does not speak", shown(record[key]))
    if isinstance(record, dict) and Segment.INTERLEAVED in task.segments:
        for key in sorted(AUDIO_KEYS & record.keys()):
            expected = f"nothing: options.text sets the sampling of text and audio for {task.name!r}"
            raise InvalidRequest(f"{field}.{key}", expected, shown(record[key]))
    return OPTIONS.check(field, record)


SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_rows", "max_rows")
SHORTHANDS = ("temperature", "top_k", "top_p")  # top-level options that apply to the task's last segment
AUDIO_KEYS = {
    "max_audio_s",
    "audio",
    "depth",
    "guidance",
    "guidance_scale",
    "script_temperature",
}  # options of an audio segment
SPEECH_KEYS = {*AUDIO_KEYS, "voice", "language", "transliterate", "instruct", "text_mode", "output", "chunking"}


def _segment(
    name: str, given: SegmentOptions, shorthands: dict[str, Any], defaults: SegmentSampling, family: Family
) -> SegmentSampling:
    path = f"options.{name}"
    values: dict[str, Any] = {key: value for key, value in given.items() if key in SAMPLING_KEYS}
    for key in sorted(shorthands.keys() & values.keys()):
        raise InvalidRequest(f"options.{key}", f"either {key} or {name}.{key}", "both")
    values |= shorthands
    max_rows = given.get("max_rows", 1)
    if max_rows > family.max_model_len:
        raise InvalidRequest(f"{path}.max_rows", f"at most {family.max_model_len} rows", max_rows)
    num_closing = family.tail.num_closing_rows(family.layout.max_delay) if name == "audio" else 0
    if "max_rows" in given and 0 < max_rows <= num_closing:
        expected = f"at least {num_closing + 1} rows, because {num_closing} of them start no frame"
        raise InvalidRequest(f"{path}.max_rows", expected, max_rows)
    sampling = _within_max_rows(replace(defaults, **values), given)
    sampling.check(name)
    return sampling


def _within_max_rows(sampling: SegmentSampling, given: SegmentOptions) -> SegmentSampling:
    """Cap the family's default minimum number of rows by the requested maximum."""
    if "min_rows" in given or given.get("max_rows", 1) < 1:
        return sampling
    return replace(sampling, min_rows=min(sampling.min_rows, sampling.max_rows))


def _max_audio(options: OptionsRecord, audio: SegmentSampling, family: Family, frame_rate: float) -> SegmentSampling:
    if "max_audio_s" not in options:
        return audio
    seconds = options["max_audio_s"]
    num_closing_rows = family.tail.num_closing_rows(family.layout.max_delay)
    longest = (audio.max_rows - num_closing_rows) // family.rows_per_frame
    low, high = 1 / frame_rate, longest / frame_rate
    if not low <= seconds <= high:
        raise InvalidRequest("options.max_audio_s", f"seconds in [{low:g}, {high:g}]", seconds)
    # The small term makes 0.28 s at 25 Hz exactly 7 frames; floating point yields 7.000000000000001.
    rows = max(1, int(seconds * frame_rate + 1e-6)) * family.rows_per_frame + num_closing_rows
    return _within_max_rows(replace(audio, max_rows=rows), options.get("audio", {}))


def _depth(options: OptionsRecord, family: Family, audio: SegmentSampling) -> CodeSampling:
    """Return the sampling parameters of the depth transformer's streams, by default those of stream 0."""
    if family.depth is None:
        raise InvalidRequest("options.depth", "nothing: this model has no depth transformer", shown(options["depth"]))
    values: dict[str, Any] = {key: options["depth"].get(key, getattr(audio, key)) for key in SHORTHANDS}
    return CodeSampling(**values)


def _guidance(options: OptionsRecord) -> dict[str, Any]:
    """Return the guidance options of a request as fields of SamplingConfig."""
    if "guidance" not in options:
        return {"guidance_scale": options["guidance_scale"]} if "guidance_scale" in options else {}
    if "guidance_scale" in options:
        raise InvalidRequest("options.guidance", "either guidance or guidance_scale", "both")
    guidance, fields = options["guidance"], dict[str, Any]()
    if "scale" in guidance:
        fields["guidance_scale"] = guidance["scale"]
        if not 0.0 <= guidance["scale"] <= MAX_GUIDANCE_SCALE:
            expected = f"a number in [0.0, {MAX_GUIDANCE_SCALE}]"
            raise InvalidRequest("options.guidance.scale", expected, guidance["scale"])
    if "policy" in guidance:
        fields |= {"policy": guidance["policy"], "guided_until_s": None}
    if "until_s" in guidance:
        fields["guided_until_s"] = guidance["until_s"]
    return fields


def _schedule(options: OptionsRecord, family: Family) -> str | tuple[int, ...]:
    """Return the requested schedule: a name, or its numbers M, m, M, m, …"""
    schedule = options["schedule"]
    if family.bursts is None:
        raise InvalidRequest("options.schedule", "none: this model generates one row per step", shown(schedule))
    if isinstance(schedule, list):
        return _numbers(schedule)
    names = [schedule.name for schedule in family.bursts.schedules]
    if schedule not in names:
        raise InvalidRequest("options.schedule", f"one of {', '.join(names)}, or numbers", shown(schedule))
    return schedule


def _numbers(schedule: list[Any]) -> tuple[int, ...]:
    if not schedule or len(schedule) % 2 or len(schedule) > MAX_NUMBERS:
        got = f"{len(schedule)} numbers"
        raise InvalidRequest("options.schedule", f"at most {MAX_NUMBERS // 2} pairs of numbers [M, m, M, m, …]", got)
    for at, number in enumerate(schedule):
        low = 0 if at % 2 else 1
        if type(number) is not int or not low <= number <= MAX_NUMBER:
            raise InvalidRequest(f"options.schedule[{at}]", f"an integer in [{low}, {MAX_NUMBER}]", shown(number))
    return tuple(schedule)


def _voice(options: OptionsRecord, family: Family) -> str | None:
    voice = options.get("voice", family.voices[0] if family.voices else None)
    if isinstance(voice, str):
        voice = voice.lower()
    if "voice" in options and voice not in family.voices:
        expected = f"one of {', '.join(family.voices)}" if family.voices else "none: this model has no named voices"
        raise InvalidRequest("options.voice", expected, shown(options["voice"]))
    return voice
