"""Conversion of VITA-Audio releases in Hugging Face format, where MCTP-module layers follow the backbone layers.

Names follow vita_audio/models/qwen2_mtp_v4_48_3 and vita_audio/tokenizer_glm4voice.py in
https://github.com/VITA-MLLM/VITA-Audio. The modules' projections and norms belong to the class that has the head, so
their names begin with `mtp_`; some tools prepend `model.`. VITA-Audio-Plus files contain the SenseVoice encoder.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stretto.encoders.whisper_vq import CONFIG, FEATURES, FOLDER, read_tokenizer
from stretto.errors import CheckpointError
from stretto.families.vita_audio.family import BALANCE, HEARD, MARKERS, SCHEDULES, SENSE_VOICE, VANILLA, VitaVocabulary
from stretto.families.vita_audio.model import SenseVoice
from stretto.families.vita_audio.prompt import DITHER, NUM_BINS, STACKED
from stretto.family.audio_format import KEY
from stretto.family.conversion import AUDIO, Contents, Converted, Release, Tokenizer, unchanged
from stretto.family.plugin import DRAWN, NAME, VOCABULARY
from stretto.family.sections import NumLayers, Section, Size
from stretto.untrusted_files import check_value, read_json, read_text, released_file, yaml_mapping
from stretto.weights import loading
from stretto.weights.backbones import config_of, shapes
from stretto.weights.loading import Part, PendingTensor, Plan, Written, shapes_of


@dataclass(frozen=True)
class PublishedTokenizer:
    """Files to be copied to `ssl_tokenizer/` without conversion."""

    files: list[Path]
    entries: Sequence[PendingTensor] = ()
    dropped: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path, num_codes: int) -> "PublishedTokenizer":
        """Return the tokenizer's files; raise CheckpointError if one is missing or there are not `num_codes` codes."""
        read_tokenizer(folder, num_codes)
        names = [CONFIG, FEATURES, *sorted(path.name for path in folder.glob("model*.safetensors"))]
        return cls([released_file(folder, name) for name in names])

    def write(self, folder: Path, progress: loading.Progress) -> list[Written]:
        """Copy the tokenizer's files to `folder`."""
        return [loading.copy_file(path, folder / path.name, f"{FOLDER}/{path.name}") for path in self.files]


TOWER = "model.audio_model.model."
ADAPTOR = "model.audio_projection."
UNUSED = f"{TOWER}ctc."  # transcription head


class Encoder(Section):
    """`encoder_conf` of SenseVoice, with the defaults of the authors' classes."""

    output_size: Size
    attention_heads: Size
    linear_units: Size
    num_blocks: NumLayers
    tp_blocks: NumLayers
    kernel_size: Size
    sanm_shfit: Annotated[int, Field(ge=0, le=1 << 16)] = 0
    normalize_before: Literal[True] = True
    concat_after: Literal[False] = False
    selfattention_layer_type: Literal["sanm"] = "sanm"


class FrontEnd(Section):
    """`frontend_conf`, with the defaults of the authors' class; the values are those of `prompt.py`."""

    fs: Literal[16000] = 16000
    window: Literal["hamming"] = "hamming"
    n_mels: Literal[80] = 80
    frame_length: Literal[25] = 25
    frame_shift: Literal[10] = 10
    lfr_m: Literal[7]
    lfr_n: Literal[6]
    dither: Annotated[float, Field(ge=DITHER, le=DITHER)] = DITHER
    snip_edges: Literal[True] = True


class SenseVoiceRelease(Section):
    """config.yaml of a release with SenseVoice."""

    model: Literal["SenseVoiceSmall"]
    encoder: Literal["SenseVoiceEncoderSmall"]
    encoder_conf: Encoder
    frontend: Literal["WavFrontend"]
    frontend_conf: FrontEnd


def encoder_numbers(folder: Path) -> dict[str, Any]:
    """Return the audio encoder's sizes and normalisation for the checkpoint's config.json (`audio_config`).

    Raises:
        CheckpointError: If files are missing or unsupported.
    """
    path = released_file(folder, "config.yaml")
    encoder = SenseVoiceRelease.read(yaml_mapping(path), str(path)).encoder_conf
    numbers = {name: value for name, value in encoder.model_dump().items() if type(value) is int}
    width = NUM_BINS * STACKED
    shift, scale = _normalisation(released_file(folder, "am.mvn"), width)
    return {"model_type": SENSE_VOICE, "num_mel_bins": width, **numbers, "shift": shift, "scale": scale}


def encoder_plan(audio: Mapping[str, Any], hidden_size: int) -> Plan:
    """Return the plan for the tensors of the encoder and adaptor; names are unchanged except for the prefix."""
    size = audio["output_size"]
    adaptor: dict[str, tuple[int, ...]] = {"pre_proj_layernorm.weight": (size,), "pre_proj_layernorm.bias": (size,)}
    adaptor |= {"mlp.0.weight": (hidden_size, size), "mlp.2.weight": (hidden_size, hidden_size)}
    tower = shapes_of(SenseVoice, audio)
    parts = {f"{TOWER}{name}": Part(f"audio_tower.{name}", shape) for name, shape in tower.items()}
    return parts | {f"{ADAPTOR}{name}": Part(f"adaptor.{name}", shape) for name, shape in adaptor.items()}


def _normalisation(path: Path, width: int) -> tuple[list[float], list[float]]:
    """Return shift and scale of each input feature, applied in this order, from a network in Kaldi's text format."""
    try:
        words = read_text(path).split()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: expected the normalisation of audio features, got {error}") from error
    rows = []
    for layer in ("<AddShift>", "<Rescale>"):
        try:
            begin = words.index("[", words.index(layer)) + 1
            rows.append([float(word) for word in words[begin : words.index("]", begin)]])
        except ValueError as error:
            raise CheckpointError(f"{path}: expected {layer} and {width} numbers, got {error}") from error
        if len(rows[-1]) != width:
            raise CheckpointError(f"{path}: {layer}: expected {width} numbers, got {len(rows[-1])}")
        if not all(map(isfinite, rows[-1])):
            raise CheckpointError(f"{path}: {layer}: expected finite numbers, got NaN or infinity")
    return rows[0], rows[1]


EMBEDDINGS = "model.embed_tokens.weight"
SSL_TOKENIZER = PublishedTokenizer
# Text and codes share one segment.
GENERATION = AUDIO | {name: (f"text.{name}", f"audio.{name}") for name in DRAWN}
GENERATION |= {"do_sample": ("text.temperature", "audio.temperature")}
PLUS = "qwen2_mtp_sensevoice"
MODEL_TYPES = ("qwen2_mtp", "qwen2", PLUS)  # `qwen2` is a release without modules
# Keys in config.json that concern layers; the other keys concern tokens and tools.
NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)
REQUIRED = (*NUMBERS, "vocab_size")


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    if release.keeps_codec or release.backbone:
        raise CheckpointError("VITA-Audio: --codec-from-model and --backbone are not supported")
    config = contents.config
    num_main, num_modules = layers(config)
    encodes_audio = config["model_type"] == PLUS
    if encodes_audio and release.ssl_tokenizer:
        raise CheckpointError("--ssl-tokenizer: not supported by VITA-Audio-Plus, which has its own audio encoder")
    vocab = replace(
        vocabulary(contents.tokenizer, config["vocab_size"], (*MARKERS, *[HEARD] * encodes_audio)),
        num_modules=num_modules,
        schedule=schedule(release.config_folder, num_modules),
    )
    numbers = {name: config[name] for name in NUMBERS} | {"model_type": "qwen2", "num_hidden_layers": num_main}
    record = config_of(numbers, vocab.vocab_size, contents.dtype)
    record |= {"num_nextn_predict_layers": num_modules, NAME: "vita_audio", VOCABULARY: vocab.to_record()}
    prefix = "model." if any(name.startswith("model.mtp_") for name in contents.tensors) else ""
    parts = plan(record, num_modules, prefix)
    if not encodes_audio:
        return Converted(record, parts, ())
    record[KEY] = encoder_numbers(release.config_folder)
    parts |= encoder_plan(record[KEY], record["hidden_size"])
    return Converted(record, parts, (UNUSED,))


def layers(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of decoder layers in the backbone, and the number of MCTP modules, which have a layer each."""
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise CheckpointError(f"config.json: {missing[0]} is missing")
    check_value("model_type", config.get("model_type"), *MODEL_TYPES)
    num_modules = config.get("num_nextn_predict_layers", 0)
    if type(num_modules) is not int or not 0 <= num_modules < config["num_hidden_layers"]:
        expected = f"less than num_hidden_layers, which is {config['num_hidden_layers']}"
        raise CheckpointError(f"config.json: num_nextn_predict_layers: expected {expected}, got {num_modules!r}")
    return config["num_hidden_layers"] - num_modules, num_modules


def vocabulary(tokenizer: Tokenizer, vocab_size: int, markers: Sequence[str] = tuple(MARKERS)) -> VitaVocabulary:
    """Return the vocabulary; raise CheckpointError if a marker is missing or the ids of codes are not contiguous."""
    ids = tokenizer.ids_of([f"<|{name}|>" for name in (*markers, "audio_0")], vocab_size)
    first = ids["<|audio_0|>"]
    size = sum(bool(re.fullmatch(r"<\|audio_\d+\|>", token)) for token in ids)
    for code in range(size):
        if (got := ids.get(f"<|audio_{code}|>")) != first + code:
            raise CheckpointError(
                f"{tokenizer.folder}: expected <|audio_{code}|> with id {first + code}, got {got or 'none'}"
            )
    return VitaVocabulary(vocab_size, first, size, {name: ids[f"<|{name}|>"] for name in markers})


def plan(record: dict[str, Any], num_modules: int, prefix: str) -> Plan:
    """Return the plan of tensors to write; names are unchanged, except that `prefix` is removed from module names."""
    num_layers = record["num_hidden_layers"] + num_modules
    width = record["hidden_size"]
    parts = unchanged(shapes({**record, "num_hidden_layers": num_layers}))
    beside = {"projs": (width, 2 * width), "embed_norms": (width,), "hidden_norms": (width,)}
    for module in range(num_modules):
        names = {f"mtp_{projection}.{module}.weight": shape for projection, shape in beside.items()}
        parts |= {f"{prefix}{name}": Part(name, shape) for name, shape in names.items()}
    return parts


def schedule(folder: Path, num_modules: int) -> str:
    """Return the name of a release's default schedule, a key of SCHEDULES.

    The schedule may be set in generation_config.json. Otherwise, as in the authors' repository, it is `balance` if the
    release has enough modules for that, and `vanilla` if not.
    """
    path = folder / "generation_config.json"
    mode = read_json(path).get("mtp_inference_mode") if num_modules and path.is_file() else None
    names = {value: name for name, value in SCHEDULES.items()}
    if mode is None:
        return BALANCE if num_modules >= max(SCHEDULES[BALANCE][1::2]) else VANILLA
    if not isinstance(mode, list) or tuple(mode) not in names:
        supported = ", ".join(str(list(value)) for value in names)
        raise CheckpointError(f"{path}: mtp_inference_mode: expected one of {supported}, got {mode}")
    if max(mode[1::2]) > num_modules:
        raise CheckpointError(f"{path}: mtp_inference_mode: expected at most {num_modules} modules, got {mode}")
    return names[tuple(mode)]
