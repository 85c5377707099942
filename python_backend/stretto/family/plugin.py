"""Interface of family plug-ins: everything that Stretto needs to serve a model family.

An installed package registers a family through an entry point in the group `stretto.families`. The entry point has the
family's name and refers to a `FamilyPlugin`, or to a `Family` if the family has no prompts. The stretto package
registers the built-in families in the same way.

This module also looks up plug-ins by name, and finds the family of a checkpoint. A checkpoint can name an installed
family, but it cannot contain or name code.

`speech_sampling` in config.json overrides the sampling defaults of the family:

    {"audio": {"temperature": 0.7, "top_k": 30}, "depth": {"temperature": 0.8}, "repetition_penalty": 1.1}

`stretto convert` copies them from a release's generation_config.json. Options of a request override them.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from stretto.codecs.decoder_sizes import BUILT_IN, UNKNOWN, DecoderSize
from stretto.entry_points import FAMILIES, Installed, find, installed, names
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.base import VOCABULARY, Family
from stretto.records.sampling import NUMBER_OPTIONS, CodeSampling, SamplingConfig, SegmentSampling
from stretto.untrusted_files import UNPARSABLE, json_object, leading_elsewhere
from stretto_contract.speech_checks import USUAL_SIGNALS, SignalLimits

UNNAMED = ""  # `model_type` of an encoder whose `audio_config` may have none


def lazy(reference: str, *first: Any) -> Callable[..., Any]:
    """Return a function that imports `module:name` when called.

    The function passes `first` and then its own arguments to the imported object. As an attribute of a class, it is a
    method, whose own first argument is the instance.

    Processes without torch or vLLM import a plug-in's module, so it refers to other modules only by name.
    """
    module, name = reference.split(":")

    def call(*arguments: Any) -> Any:
        return attrgetter(name)(import_module(module))(*first, *arguments)

    return call


@dataclass(frozen=True)
class AudioEncoder:
    """Audio encoder that is a part of the model.

    Attributes:
        read_format: Function that returns the encoder's `AudioFormat` for `audio_config` of a checkpoint's config.json.
        network: Name of the module with the encoder's network, which the engine imports: `audio_tower(audio_config)`,
            `audio_adaptor(audio_config, hidden_size)` and `embed_audio(tower, adaptor, features)`.
    """

    read_format: Callable[[Mapping[str, Any]], Any]
    network: str


# Rows of a recorded voice, which the preprocessor computes.
VECTORS = AudioEncoder(
    lazy("stretto.family.audio_format:VectorFormat.from_record"), "stretto.engine.models.vector_rows"
)


@dataclass(frozen=True)
class FamilyPlugin:
    """Everything that Stretto needs to serve one model family. All callables import lazily.

    Attributes:
        name: Name of the family, as in `speech_family` of a checkpoint's config.json.
        build: Function that returns the family for `speech_vocabulary` in config.json; None selects the published one.
        open_template: Function that returns the prompt `Template` for a family, checkpoint folder, codec and torch
            device; None if the family is used only through `SpeechLLM`.
        text_codec: Function that returns the `TextCodec` for a family without a tokenizer and a checkpoint folder; None
            if the family's text is not readable.
        convert: Name of the module that converts releases (a `Published`); None if there is none.
        architectures: Model classes that vLLM lacks, as "module:Class", keyed by the name in config.json.
        audio_encoders: Encoders inside the model, keyed by `model_type` of `audio_config` in config.json, or `UNNAMED`.
        image_encoders: Names of modules with image encoders inside the model, keyed by `model_type` of `image_config`
            in config.json. `image_encoder(image_format, backbone, vllm_config)` returns a
            `stretto.family.image_encoder.ImageEncoder`, or an object with the same attributes and methods.
        open_live_input: Function that returns the `LiveInput` for a checkpoint folder and its codec; None if the family
            does not accept live audio. If there is one, the `Template` is a `LiveTemplate`.
        releases: Package data with the family's published releases, as "package:releases.json"; see
            `stretto.releases.catalogue`. Families may share a file.
        recognise: Function that recognises releases by names and configs, as "module:function"; see
            `stretto.family.recognition`. Its module does not import torch. Families may share a function.
        notes: Package data with the family's section of docs/published_models.md, as "package:releases.md"; None for a
            family without a section of its own.
        phonemes: Function that writes phonemes as the model reads them in a text, keyed by the phonetic alphabet (a
            value of `stretto_contract.pronunciation.ALPHABETS`). Its argument has symbols of the alphabet, separated by
            single spaces. It raises ValueError for those that the model cannot read. Empty for a model that reads
            letters only.
        decoders: Sizes of the decoder with the package's codecs, keyed by the codec, or by a variant of a codec that
            `shape` of a release names. A codec that several families of a package use is stated by one of them.
        signals: Limits beyond which the samples of the model's speech are faulty.
    """

    name: str
    build: Callable[[Mapping[str, Any] | None], Family]
    open_template: Callable[..., Any] | None = None
    text_codec: Callable[..., Any] | None = None
    convert: str | None = None
    architectures: Mapping[str, str] = field(default_factory=dict)
    audio_encoders: Mapping[str, AudioEncoder] = field(default_factory=dict)
    image_encoders: Mapping[str, str] = field(default_factory=dict)
    open_live_input: Callable[..., Any] | None = None
    releases: str | None = None
    recognise: str | None = None
    notes: str | None = None
    phonemes: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    decoders: Mapping[str, DecoderSize] = field(default_factory=dict)
    signals: SignalLimits = USUAL_SIGNALS


def family_plugin(package: str, **members: Any) -> FamilyPlugin:
    """Return the plug-in of a package with the files below; `members` replace what a file would define.

        family.py      build            convert.py     the conversion module
        prompt.py      open_template    recognise.py   recognise
        releases.json  published releases, described in releases.md

    Args:
        package: Name of the package; the family's name is its last part, without `stretto_`.
    """
    usual: dict[str, Any] = {
        "name": package.rpartition(".")[2].removeprefix("stretto_"),
        "build": lazy(f"{package}.family:build"),
        "open_template": lazy(f"{package}.prompt:open_template"),
        "convert": f"{package}.convert",
        "releases": f"{package}:releases.json",
        "recognise": f"{package}.recognise:recognise",
        "notes": f"{package}:releases.md",
    }
    return FamilyPlugin(**usual | members)


SAMPLING = "speech_sampling"
SEGMENTS = ("text", "audio")
DRAWN = ("temperature", "top_k", "top_p")


def with_defaults(family: Family, record: object) -> Family:
    """Return the family with sampling defaults overridden by a `speech_sampling` record, or raise CheckpointError."""
    if record is None:
        return family
    if not isinstance(record, Mapping):
        raise CheckpointError(f"config.json: {SAMPLING}: expected an object, got {shown(record)}")
    for name, value in record.items():
        if name not in (*SEGMENTS, "depth", *NUMBER_OPTIONS):
            raise CheckpointError(f"config.json: {SAMPLING}: unknown {shown(name)}")
        if name in (*SEGMENTS, "depth") and not (isinstance(value, Mapping) and {*value} <= {*DRAWN}):
            raise CheckpointError(f"config.json: {SAMPLING}.{name}: expected {', '.join(DRAWN)}, got {shown(value)}")
    try:
        tasks = tuple(replace(task, sampling=_over(task.sampling, record)) for task in family.tasks)
    except InvalidRequest as error:
        field = error.field.removeprefix("options.")
        raise CheckpointError(f"config.json: {SAMPLING}.{field}: expected {error.expected}, got {error.got}") from error
    return replace(family, tasks=tasks)


def _over(defaults: SamplingConfig, record: Mapping[str, Any]) -> SamplingConfig:
    """Return a task's sampling defaults, overridden by `record`."""
    text, audio = (_segment(getattr(defaults, name), record.get(name, {})) for name in SEGMENTS)
    sampling = record.get("depth")
    depth = defaults.depth
    if sampling is not None:
        depth = replace(depth or CodeSampling(audio.temperature, audio.top_k, audio.top_p), **sampling)
    others = {name: record[name] for name in NUMBER_OPTIONS if name in record}
    return replace(defaults, text=text, audio=audio, depth=depth, **others)


def _segment(defaults: SegmentSampling, record: Mapping[str, Any]) -> SegmentSampling:
    """Return a segment's sampling defaults, overridden by `record`; greedy defaults stay greedy."""
    is_greedy = defaults.temperature == 0
    return replace(defaults, **{name: value for name, value in record.items() if not (is_greedy and name == DRAWN[0])})


logger = logging.getLogger(__name__)

NAME = "speech_family"  # key of a checkpoint's config.json
MAX_ID = (
    1 << 20
)  # limit of every number in a vocabulary; real ones are far lower, and a billion streams would exhaust memory


def plugin(name: str) -> FamilyPlugin | None:
    """Return a family's plug-in, or None if the name is unknown; raise CheckpointError if it is ambiguous or broken."""
    registered = find(FAMILIES, name)
    return None if registered is None else _loaded(registered)


def plugins() -> Iterator[FamilyPlugin]:
    """Yield the plug-ins of all installed families; those that cannot be imported are logged and skipped."""
    for registered in installed(FAMILIES):
        try:
            yield _loaded(registered)
        except CheckpointError as error:
            logger.warning("%s", error)


def decoder_size(codec: str) -> DecoderSize:
    """Return the size of the decoder with a codec or a variant of one; `UNKNOWN` if no package states it."""
    stated = {name: size for family in plugins() for name, size in family.decoders.items()}
    return (stated | BUILT_IN).get(codec, UNKNOWN)


def _loaded(registered: Installed) -> FamilyPlugin:
    loaded = registered.load()
    if isinstance(loaded, Family):
        return FamilyPlugin(registered.name, lambda vocabulary: loaded)
    if not isinstance(loaded, FamilyPlugin):
        expected = f"a FamilyPlugin as {registered.entry_point.value}"
        raise CheckpointError(f"family {registered.name}: expected {expected}, got {type(loaded).__name__}")
    return loaded


def read_family(config: Mapping[str, Any]) -> Family:
    """Return the family that a checkpoint's config.json names; raise CheckpointError if a value does not fit."""
    named = read_plugin(config)
    vocabulary = config.get(VOCABULARY)
    if (number := _largest(vocabulary)) > MAX_ID:
        expected = f"numbers of at most {MAX_ID}"
        raise CheckpointError(f"config.json: {VOCABULARY}: expected {expected}, got {shown(number)}")
    try:
        built = named.build(vocabulary)
    except InvalidRequest as error:
        raise CheckpointError(f"config.json: {error}") from error
    except UNPARSABLE as error:
        raise CheckpointError(f"config.json: {VOCABULARY}: invalid vocabulary for {named.name}: {error!r}") from error
    return with_defaults(built, config.get(SAMPLING))


def _largest(value: object) -> int:
    """Return the largest integer at any level of a JSON value; 0 if there is none."""
    if isinstance(value, Mapping | list):
        return max(map(_largest, value.values() if isinstance(value, Mapping) else value), default=0)
    return value if isinstance(value, int) else 0


def read_plugin(config: Mapping[str, Any]) -> FamilyPlugin:
    """Return the plug-in of the family named in a checkpoint's config.json; raise CheckpointError if there is none."""
    name = config.get(NAME)
    if not isinstance(name, str):
        raise CheckpointError(f"config.json: expected the family's name in {NAME}, got {shown(name)}")
    named = plugin(name)
    if named is None:
        raise CheckpointError(f"config.json: {NAME}: unknown family {shown(name)}; installed: {names(FAMILIES)}")
    return named


def plugin_at(checkpoint: Path) -> FamilyPlugin:
    """Return the plug-in for a checkpoint folder; raise CheckpointError if its config.json names none."""
    return read_plugin(config_at(checkpoint))


def family_at(checkpoint: Path) -> Family:
    """Return the family for a checkpoint folder; raise CheckpointError if config.json is not from a checkpoint."""
    return read_family(config_at(checkpoint))


def all_layers_slide(layer_types: Iterable[str] | None) -> bool:
    """Return True if all layers of a backbone have a sliding window, given `layer_types` of config.json or None."""
    return {*(layer_types or ())} == {"sliding_attention"}


def config_at(checkpoint: Path) -> dict[str, Any]:
    """Return the contents of config.json in a checkpoint folder, or raise CheckpointError.

    Keys that make libraries load code or weights from elsewhere are refused.
    """
    record = json_object(checkpoint / "config.json")
    odd = leading_elsewhere(record)
    if odd is not None:
        raise CheckpointError(f"{checkpoint / 'config.json'}: {odd}: expected a checkpoint without this key")
    return record
