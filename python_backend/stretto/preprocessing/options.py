"""Options of a request: sampling, limits, delivery and the manner of speaking."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stretto.errors import InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.option_checks import check_sampling
from stretto.family.prompting import (
    PLAIN,
    Manner,
    read_guidance_scale,
    read_manner,
    read_voice,
)
from stretto.family.pronunciations import read_spellings
from stretto.family.text import check_text
from stretto.preprocessing.hearing import read_session_options
from stretto.records.json_record import MAX_BYTES, read_json
from stretto.records.sampling import (
    NUMBER_OPTIONS,
    OPTIONS,
    CodeSampling,
    Delivery,
    LatentSampling,
    OutputForm,
    RingAddress,
    SamplingConfig,
    SegmentSampling,
)
from stretto.streams.chunking import ChunkPolicy
from stretto.streams.layout import Segment
from stretto_contract.schema import ChunkingOptions, OptionsRecord, SegmentOptions

MAX_CHUNK_S = 10.0
MAX_OPTIONS_BYTES = 64 * 1024  # four times that of other JSON, for dictionaries of pronunciations


def read_delivery(
    options: OptionsRecord,
    family: Family,
    frame_rate: float,
    held_frames: int,
    blocks: tuple[int, ...] = (),
    chunking: ChunkingOptions | None = None,
) -> Delivery:
    """Return the output format and the chunk sizes in a request's options.

    Args:
        held_frames: The codec's right context in frames.
        blocks: Block sizes of the codec in frames (`ChunkPolicy`).
        chunking: Default chunk sizes of this server; None for the family's.
    """
    first = family.first_chunk_frames
    steady = family.steady_chunk_frames
    of_family = ChunkPolicy(first, steady, frame_rate=frame_rate, held_frames=held_frames, blocks=blocks)
    default = _policy(chunking or {}, of_family)
    output = options.get("output", {})
    policy = _policy(options.get("chunking", {}), default)
    default_first = 0 if chunking is None else default.first_frames
    if output.get("codes") and family.layout.latents:
        raise InvalidRequest("options.output.codes", "false (frames of this model have no codes)", "true")
    ring = RingAddress(**output["ring"]) if "ring" in output else None
    encoding = output.get("encoding", "pcm_f32le")
    form = OutputForm(encoding, output.get("sample_rate"), ring, policy.deterministic)
    return Delivery(form, policy, output.get("codes", False), *read_session_options(options, family), default_first)


def _policy(requested: ChunkingOptions, default: ChunkPolicy) -> ChunkPolicy:
    steady = requested.get("steady_frames", default.steady_frames)
    first = requested.get("first_frames", min(default.first_frames, steady))
    most = max(steady if "steady_frames" not in requested else 1, int(MAX_CHUNK_S * default.frame_rate))
    for name, frames, limit in (("steady_frames", steady, most), ("first_frames", first, steady)):
        if not 1 <= frames <= limit:
            raise InvalidRequest(f"options.chunking.{name}", f"an integer in [1, {limit}]", frames)
    playout_s = requested.get("playout_s", default.playout_s)
    is_fixed = requested.get("deterministic", default.deterministic)
    return replace(default, first_frames=first, steady_frames=steady, playout_s=playout_s, deterministic=is_fixed)


@dataclass(frozen=True, slots=True)
class Options:
    """Parsed options of a request.

    Attributes:
        voice: Name of the voice; None if the task generates no speech or the family has no named voices.
        spellings: Replacements for words of the text.
        aligns_words: True if word times are requested from the aligner.
        drops_silence: True if silent frames at the start of the reply are not sent. A template knows them only for
            replies without an adapter and with the task's default sampling.
        has_length: True if the request sets a minimum or maximum length of the reply.
    """

    sampling: SamplingConfig
    voice: str | None
    delivery: Delivery = field(default_factory=Delivery)
    manner: Manner = PLAIN
    adapter: str | None = None
    aligns_words: bool = False
    names_voice: bool = False
    spellings: Mapping[str, str] = field(default_factory=dict)
    drops_silence: bool = False
    has_length: bool = False


def read_options(
    text: str | None,
    family: Family,
    task: Task,
    frame_rate: float,
    held_frames: int = 0,
    blocks: tuple[int, ...] = (),
    chunking: ChunkingOptions | None = None,
) -> Options:
    """Return the request's options, with the task's defaults for missing values; see `read_delivery`."""
    options = _read("options", text, task)
    defaults = task.sampling
    speaks = Segment.AUDIO in task.segments  # with or without a preceding text segment
    shorthands = {key: value for key, value in options.items() if key in SHORTHANDS}
    in_text, in_audio = ({}, shorthands) if speaks else (shorthands, {})
    audio = _segment("audio", options.get("audio", {}), in_audio, defaults.audio, family)
    guidance = _guidance(options)
    scale = read_guidance_scale(guidance, family) if family.guidance_scales else None
    latents = _latents(options, family, defaults, guidance)
    schedule = options.get("schedule", defaults.schedule)
    frames: Any = options.get("redraw_from", ())
    sampling = replace(
        defaults,
        text=_segment("text", options.get("text", {}), in_text, defaults.text, family),
        audio=_max_audio(options, audio, family, frame_rate),
        seed=options.get("seed"),
        redraw_from=tuple(frames) if isinstance(frames, list) else frames,
        depth=_depth(options, family, audio) if "depth" in options else defaults.depth,
        schedule=tuple(schedule) if isinstance(schedule, list) else schedule,
        latents=latents,
        **guidance,
        **_numbers(options),
    )
    _check_sampling(sampling, family, task, shorthands)
    delivery = read_delivery(options, family, frame_rate, held_frames, blocks, chunking)
    adapter = options.get("adapter")
    if adapter is not None:
        check_text(adapter, "options.adapter", MAX_BYTES)
    if not task.speaks:
        language = family.languages.choose(options.get("language"))
        manner = Manner(language=language, beginning=_beginning(options, task, family))
        return Options(sampling, None, delivery, manner, adapter, aligns_words="words" in options)
    manner = replace(read_manner(options, family), guidance_scale=scale)
    spellings = read_spellings(options["pronunciations"], family) if "pronunciations" in options else {}
    voice = read_voice(options, family)
    is_usual = adapter is None and sampling.draws_as(defaults)
    return Options(
        sampling,
        voice,
        delivery,
        manner,
        adapter,
        aligns_words="words" in options,
        names_voice="voice" in options,
        spellings=spellings,
        drops_silence=is_usual and not options.get("leading_silence", False),
        has_length=_sets_length(options, task),
    )


def _check_sampling(sampling: SamplingConfig, family: Family, task: Task, shorthands: dict[str, Any]) -> None:
    """Check sampling parameters; an error about a shorthand names it, and not the segment to which it applies."""
    try:
        check_sampling(sampling, family, task)
    except InvalidRequest as error:
        name = error.field.removeprefix("options.audio." if task.has_audio_segment else "options.text.")
        if name not in shorthands:
            raise
        raise InvalidRequest(f"options.{name}", error.expected, error.got) from None


def _beginning(options: OptionsRecord, task: Task, family: Family) -> str | None:
    beginning = options.get("beginning")
    if beginning is not None:
        if not task.writes_down or "beginning" not in family.options:
            expected = f"no value (task {task.name!r} of this model continues no transcript)"
            raise InvalidRequest("options.beginning", expected, shown(beginning))
        check_text(beginning, "options.beginning", family.max_text_chars)
    return beginning


def _sets_length(options: OptionsRecord, task: Task) -> bool:
    segment = options.get("audio", {}) if task.has_audio_segment else options.get("text", {})
    return "max_audio_s" in options or "min_rows" in segment or "max_rows" in segment


def _read(field: str, text: str | None, task: Task) -> OptionsRecord:
    """Parse the options; raise InvalidRequest for options of a kind of segment that replies of the task do not have."""
    if text is None:
        return {}
    record = read_json(field, text, MAX_OPTIONS_BYTES)
    if isinstance(record, dict) and "pronunciations" in record and not task.reads_aloud:
        expected = f"no value (task {task.name!r} does not read a text aloud)"
        raise InvalidRequest(f"{field}.pronunciations", expected, "an object")
    if isinstance(record, dict) and not task.speaks:
        keys = SPEECH_KEYS - {"language"} if task.writes_down else SPEECH_KEYS
        for key in sorted(keys & record.keys()):
            raise InvalidRequest(f"{field}.{key}", f"no value (task {task.name!r} does not speak)", shown(record[key]))
    if isinstance(record, dict) and "text" in record and not task.writes:
        expected = f"no value (the model generates no text in task {task.name!r})"
        raise InvalidRequest(f"{field}.text", expected, shown(record["text"]))
    if isinstance(record, dict) and Segment.INTERLEAVED in task.segments:
        for key in sorted(AUDIO_KEYS & record.keys()):
            expected = f"no value (options.text sets the sampling of text and audio for {task.name!r})"
            raise InvalidRequest(f"{field}.{key}", expected, shown(record[key]))
    return OPTIONS.check(field, record)


SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_rows", "max_rows")


SHORTHANDS = ("temperature", "top_k", "top_p")  # top-level options that apply to the task's last segment


AUDIO_KEYS = {
    "max_audio_s",
    "audio",
    "depth",
    "latents",
    "guidance",
    "guidance_scale",
    "script_temperature",
}  # options of an audio segment


SPEECH_KEYS = {
    *AUDIO_KEYS,
    *("voice", "language", "transliterate", "instruct", "exaggeration", "piece", "text_mode", "output", "chunking"),
    "leading_silence",
    "redraw_from",
}


def _segment(
    name: str, requested: SegmentOptions, shorthands: dict[str, Any], defaults: SegmentSampling, family: Family
) -> SegmentSampling:
    path = f"options.{name}"
    values: dict[str, Any] = {key: value for key, value in requested.items() if key in SAMPLING_KEYS}
    for key in sorted(shorthands.keys() & values.keys()):
        raise InvalidRequest(f"options.{key}", f"either {key} or {name}.{key}", "both")
    values |= shorthands
    max_rows = requested.get("max_rows", 1)
    if max_rows > family.max_model_len:
        raise InvalidRequest(f"{path}.max_rows", f"at most {family.max_model_len} rows", f"{max_rows} rows")
    num_closing = family.tail.num_closing_rows(family.layout.max_delay) if name == "audio" else 0
    if "max_rows" in requested and max_rows <= num_closing:
        expected = f"at least {num_closing + 1} rows, because {num_closing} of them start no frame"
        raise InvalidRequest(f"{path}.max_rows", expected, f"{max_rows} rows")
    return _within_max_rows(replace(defaults, **values), requested)


def _within_max_rows(sampling: SegmentSampling, requested: SegmentOptions) -> SegmentSampling:
    """Limit the family's default minimum number of rows to the requested maximum."""
    if "min_rows" in requested:
        return sampling
    return replace(sampling, min_rows=min(sampling.min_rows, sampling.max_rows))


def _numbers(options: OptionsRecord) -> dict[str, Any]:
    """Return the requested options of one number as fields of SamplingConfig."""
    numbers = {}
    for field_name, option in NUMBER_OPTIONS.items():
        *objects, key = option.name.split(".")
        record: Mapping[str, Any] = options
        for name in objects:
            record = record.get(name, {})
        if key in record:
            numbers[field_name] = record[key]
    return numbers


def _max_audio(options: OptionsRecord, audio: SegmentSampling, family: Family, frame_rate: float) -> SegmentSampling:
    if "max_audio_s" not in options:
        return audio
    seconds = options["max_audio_s"]
    num_closing_rows = family.tail.num_closing_rows(family.layout.max_delay)
    longest = (audio.max_rows - num_closing_rows) // family.rows_per_frame
    low = 1 / frame_rate
    high = longest / frame_rate
    if not low <= seconds <= high:
        raise InvalidRequest("options.max_audio_s", f"a number of seconds in [{low:g}, {high:g}]", seconds)
    # The small term makes 0.28 s at 25 Hz exactly 7 frames; floating point yields 7.000000000000001.
    rows = family.num_audio_rows(max(1, int(seconds * frame_rate + 1e-6)))
    return _within_max_rows(replace(audio, max_rows=rows), options.get("audio", {}))


def _depth(options: OptionsRecord, family: Family, audio: SegmentSampling) -> CodeSampling:
    """Return the sampling parameters of the streams after stream 0, which default to those of stream 0."""
    if not family.samples_codes_apart:
        raise InvalidRequest("options.depth", "no value (this model has no depth transformer)", shown(options["depth"]))
    values: dict[str, Any] = {key: options["depth"].get(key, getattr(audio, key)) for key in SHORTHANDS}
    return CodeSampling(**values)


def _latents(
    options: OptionsRecord, family: Family, defaults: SamplingConfig, guidance: dict[str, Any]
) -> LatentSampling | None:
    """Return the sampling parameters of latent frames, or None if frames consist of codes.

    If the latent predictor applies guidance itself, the scale is removed from `guidance`.
    """
    sampling = defaults.latents
    if family.layout.latents is None or sampling is None:
        if "latents" in options:
            got = shown(options["latents"])
            raise InvalidRequest("options.latents", "no value (frames of this model are codes)", got)
        return None
    sampling = replace(sampling, **options.get("latents", {}))
    if family.guides_rows and guidance:
        sampling = replace(sampling, guidance_scale=guidance.pop("guidance_scale", sampling.guidance_scale))
    return sampling


def _guidance(options: OptionsRecord) -> dict[str, Any]:
    if "guidance" not in options:
        return {"guidance_scale": options["guidance_scale"]} if "guidance_scale" in options else {}
    if "guidance_scale" in options:
        raise InvalidRequest("options.guidance", "either guidance or guidance_scale", "both")
    guidance = options["guidance"]
    fields = dict[str, Any]()
    if "scale" in guidance:
        fields["guidance_scale"] = guidance["scale"]
    if "policy" in guidance:
        fields |= {"policy": guidance["policy"], "guided_until_s": None}
    if "until_s" in guidance:
        fields["guided_until_s"] = guidance["until_s"]
    return fields
