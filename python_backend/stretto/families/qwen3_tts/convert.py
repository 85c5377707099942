"""Conversion of Qwen3-TTS releases: names, shapes and ids as published by Qwen; the codec is in `speech_tokenizer/`.

It supports https://huggingface.co/Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice and the other models in that series. All
hyperparameters of the talker come from config.json. A config.json that lacks a value is rejected, because the defaults
of the authors' classes belong to another model.

The talker's text projection, fc2(silu(fc1(x))), and the depth transformer's projection of codes are functions of a
single id. The converted tables therefore contain the projected embeddings. The weights file of Base, which clones
voices, contains a speaker encoder. The encoder is written to a separate folder, and the embedding of the text pad,
which is added to an x-vector, to a separate tensor.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.encoders.x_vector import FOLDER, PREFIX, SpeakerConfig, SpeakerEncoder
from stretto.errors import CheckpointError
from stretto.families.qwen3_tts.family import SILENT_FRAMES, SPEAKERS, CodecIds, Qwen3TtsVocabulary, TextIds
from stretto.family.audio_format import KEY
from stretto.family.base import DepthSpec
from stretto.family.conversion import (
    AUDIO,
    Contents,
    Converted,
    Network,
    Release,
    Tokenizer,
    common_record,
    in_lower_case,
    merged_reader,
    prefixed,
    unchanged,
)
from stretto.untrusted_files import check_value
from stretto.weights.backbones import with_older_keys
from stretto.weights.loading import Part, Plan, check, shapes_of

KINDS = ("custom_voice", "voice_design", "base")
SMALLER = "0b6"  # `tts_model_size` of the releases that were not trained to follow instructions
CODEC_IDS = ("pad", "bos", "think", "nothink", "think_bos", "think_eos")
NUM_SUPPRESSED = 1024  # last ids of the talker's vocabulary; of these, the authors' code samples only the end id
REAL = ("rms_norm_eps", "rope_theta")


class Numbers:
    """Part of config.json with typed access; a missing entry, or one of the wrong type, raises CheckpointError."""

    def __init__(self, record: Mapping[str, Any], path: str = ""):
        self._record = with_older_keys(record)
        self._path = path

    def entry(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Return the value called `name`, which must have one of these types."""
        value = self._record.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = kind.__name__ if isinstance(kind, type) else "number"
            raise CheckpointError(f"config.json: expected {self._path}{name} of type {expected}, got {value!r}")
        return value

    def optional_mapping(self, name: str) -> Mapping[str, Any]:
        """Return the mapping called `name`; empty if it is missing or null, which the authors' class accepts."""
        return {} if self._record.get(name) is None else self.entry(name, dict)

    def number(self, name: str) -> Any:
        """Return the positive number called `name`."""
        value = self.entry(name, (int, float) if name in REAL else int)
        if not 0 < value < 1 << 31:
            raise CheckpointError(f"config.json: expected {self._path}{name} > 0, got {value!r}")
        return value

    def flag(self, name: str) -> bool:
        """Return the boolean called `name`."""
        value = self._record.get(name)
        if not isinstance(value, bool):
            raise CheckpointError(f"config.json: expected {self._path}{name} to be true or false, got {value!r}")
        return value

    def token(self, name: str, below: int) -> int:
        """Return the id called `name`, in [0, below)."""
        return self._token(name, self.entry(name, int), below)

    def tokens(self, name: str, below: int) -> dict[str, int]:
        """Return the mapping called `name` from lower-case names to ids in [0, below)."""
        ids = self.entry(name, dict)
        found = {key: self._token(f"{name}.{key}", value, below) for key, value in ids.items()}
        return in_lower_case(found, f"config.json: {self._path}{name}")

    def part(self, name: str) -> "Numbers":
        """Return the nested part called `name`."""
        return Numbers(self.entry(name, dict), f"{self._path}{name}.")

    def same(self, name: str, expected: object, default: object = None) -> None:
        """Raise CheckpointError unless a value equals the supported one.

        Args:
            name: Name of the value.
            expected: Supported value.
            default: Default of the authors' class, used if the value is missing.
        """
        check_value(f"{self._path}{name}", self._record.get(name, default), expected)

    def _token(self, name: str, value: object, below: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
            raise CheckpointError(f"config.json: expected {self._path}{name} in [0, {below}), got {value!r}")
        return value


def vocabulary(numbers: Numbers, tokenizer: Tokenizer) -> Qwen3TtsVocabulary:
    """Return the vocabulary and voices; raise CheckpointError if the model is not supported."""
    numbers.same("model_type", "qwen3_tts")
    numbers.same("tokenizer_type", "qwen3_tts_tokenizer_12hz")
    kind = numbers.entry("tts_model_type", str)
    size = numbers.entry("tts_model_size", str)
    if kind not in KINDS:
        raise CheckpointError(f"config.json: expected tts_model_type of {', '.join(KINDS)}, got {kind!r}")
    talker = numbers.part("talker_config")
    depth = talker.part("code_predictor_config")
    for part in (talker, depth):
        part.same("hidden_act", "silu", default="silu")
        part.same("attention_bias", False, default=False)
    num_ids = talker.number("vocab_size")
    num_codes = depth.number("vocab_size")
    if num_ids - NUM_SUPPRESSED != num_codes:
        expected = f"{num_codes} codes and {NUM_SUPPRESSED} markers"
        raise CheckpointError(f"config.json: expected talker_config.vocab_size of {expected}, got {num_ids}")
    num_codebooks = talker.number("num_code_groups")
    if num_codebooks < 3:
        raise CheckpointError(f"config.json: expected talker_config.num_code_groups >= 3, got {num_codebooks}")
    depth.same("num_code_groups", num_codebooks)
    sections(talker)
    languages = talker.tokens("codec_language_id", num_ids)
    speakers = talker.tokens("spk_id", num_ids)
    has_published_speakers = bool(speakers) and speakers.items() <= SPEAKERS.items()
    return Qwen3TtsVocabulary(
        kind=kind,
        takes_instructions=kind == "voice_design" or (kind == "custom_voice" and size != SMALLER),
        num_text_ids=talker.number("text_vocab_size"),
        num_codec_ids=num_ids,
        num_codebooks=num_codebooks,
        codebook_size=num_codes,
        text=text_ids(numbers, tokenizer, talker.number("text_vocab_size")),
        codec=CodecIds(
            **{name: talker.token(f"codec_{name}_id", num_ids) for name in CODEC_IDS},
            eos=talker.token("codec_eos_token_id", num_ids),
        ),
        languages=languages,
        speakers=speakers,
        silent_frames=SILENT_FRAMES if has_published_speakers else 0,
        dialects=_dialects(talker, languages),
        max_model_len=talker.number("max_position_embeddings"),
        depth=depth_spec(talker, depth),
    )


def _dialects(talker: Numbers, languages: Collection[str]) -> dict[str, str]:
    """Map the speakers that have a dialect to that dialect, which is a language."""
    entries = in_lower_case(talker.optional_mapping("spk_is_dialect"), "config.json: talker_config.spk_is_dialect")
    dialects = {name: dialect for name, dialect in entries.items() if dialect}
    for name, dialect in dialects.items():
        if not isinstance(dialect, str) or dialect not in languages:
            got = f"{name!r}: {dialect!r}"
            raise CheckpointError(f"config.json: expected languages in talker_config.spk_is_dialect, got {got}")
    return dialects


def sections(talker: Numbers) -> list[int]:
    """Return the sections of the rotary embedding, for three positions per row; they act as one if these are equal.

    Raises:
        CheckpointError: Unless they add up to half the head dimension.
    """
    found = talker.part("rope_scaling").entry("mrope_section", list)
    if not all(isinstance(each, int) for each in found) or 2 * sum(found) != talker.number("head_dim"):
        raise CheckpointError(f"config.json: expected integers in mrope_section with sum head_dim / 2, got {found!r}")
    return found


def text_ids(numbers: Numbers, tokenizer: Tokenizer, num_ids: int) -> TextIds:
    """Return the ids of words and markers that occur in every prompt.

    Raises:
        CheckpointError: If the tokenizer lacks one of these tokens or does not fit the text table.
    """
    words = {"assistant": "assistant", "user": "user", "newline": "Ċ"}
    ids = tokenizer.ids_of(words.values(), num_ids)
    named = {name: numbers.token(f"{name}_token_id", num_ids) for name in ("im_start", "im_end")}
    named |= {name: numbers.token(f"tts_{name}_token_id", num_ids) for name in ("pad", "bos", "eos")}
    return TextIds(**named, **{name: ids[word] for name, word in words.items()})


def depth_spec(talker: Numbers, depth: Numbers) -> DepthSpec:
    """Return the hyperparameters of the depth transformer."""
    return DepthSpec(
        hidden=depth.number("hidden_size"),
        intermediate=depth.number("intermediate_size"),
        num_layers=depth.number("num_hidden_layers"),
        num_heads=depth.number("num_attention_heads"),
        num_kv_heads=depth.number("num_key_value_heads"),
        head_dim=depth.number("head_dim"),
        eps=depth.number("rms_norm_eps"),
        rope={"rope_type": "default", "rope_theta": depth.number("rope_theta")},
        projection=None if depth.number("hidden_size") == talker.number("hidden_size") else "biased",
        has_head_norms=True,
    )


CONFIG = "speaker_encoder_config"


def speaker_encoder(numbers: Numbers, hidden_size: int) -> Network:
    """Return the speaker encoder; raise CheckpointError if config.json describes a different encoder or width."""
    record = numbers.entry(CONFIG, dict)
    try:
        config = SpeakerConfig.from_record(record)
        shapes = shapes_of(SpeakerEncoder, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"config.json: {CONFIG}: expected a speaker encoder's parameters, got {error}") from error
    if config.enc_dim != hidden_size:
        expected = f"{CONFIG}.enc_dim {hidden_size}, the talker's width"
        raise CheckpointError(f"config.json: expected {expected}, got {config.enc_dim}")
    named = {name.removeprefix("network."): shape for name, shape in shapes.items()}
    return Network(FOLDER, record, {f"{PREFIX}{name}": Part(name, shape) for name, shape in named.items()})


# Keys used by the authors' package, which calls the depth transformer "subtalker".
GENERATION = AUDIO | prefixed("subtalker_", "depth") | {"subtalker_dosample": ("depth.temperature",)}
TALKER = "talker.model."
DEPTH = "talker.code_predictor."
EMBEDDINGS = f"{TALKER}text_embedding.weight"
CODES = f"{TALKER}codec_embedding.weight"
HEAD = "talker.codec_head.weight"
MARKS = {CODES: "Qwen3-TTS's language model"}
PROJECTION = f"{DEPTH}small_to_mtp_projection."
TEXT_PROJECTION = "talker.text_projection.linear_fc"
LAYER_NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    numbers = Numbers(contents.config)
    known = vocabulary(numbers, contents.tokenizer)
    talker = numbers.part("talker_config")
    shapes = published_shapes(numbers, known)
    width = talker.number("hidden_size")
    clones = known.kind == "base"
    networks = (speaker_encoder(numbers, width),) if clones else ()
    expected = unchanged(shapes)
    for network in networks:
        expected |= network.plan
    check(expected, contents.tensors, ())
    record = {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        **{name: talker.number(name) for name in LAYER_NUMBERS},
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": known.max_model_len,
        **common_record("qwen3_tts", known, known.layout.vocab_size, contents),
    }
    if clones:
        record[KEY] = {"model_type": "x_vector", "hidden_size": width}
    parts = plan(known, shapes, contents.tensors)
    folded = tuple(name for name in shapes if name not in parts)
    return Converted(record, parts, (), folded, networks)


def published_shapes(numbers: Numbers, known: Qwen3TtsVocabulary) -> dict[str, tuple[int, ...]]:
    """Map the names of all talker tensors to their shapes."""
    talker = numbers.part("talker_config")
    depth = talker.part("code_predictor_config")
    width = talker.number("hidden_size")
    text = talker.number("text_hidden_size")
    inner = known.depth.hidden
    shapes = {
        EMBEDDINGS: (known.num_text_ids, text),
        f"{TEXT_PROJECTION}1.weight": (text, text),
        f"{TEXT_PROJECTION}1.bias": (text,),
        f"{TEXT_PROJECTION}2.weight": (width, text),
        f"{TEXT_PROJECTION}2.bias": (width,),
        **code_shapes(known, width),
    }
    if known.depth.projection:
        shapes |= {f"{PROJECTION}weight": (inner, width), f"{PROJECTION}bias": (inner,)}
    return shapes | layer_shapes(TALKER, talker) | layer_shapes(f"{DEPTH}model.", depth)


def code_shapes(known: Qwen3TtsVocabulary, width: int) -> dict[str, tuple[int, ...]]:
    """Map the names of the codebooks' embedding tables and heads to their shapes."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys((CODES, HEAD), (known.num_codec_ids, width))
    for k in range(known.num_codebooks - 1):
        shapes[_codes(k)] = (known.codebook_size, width)
        shapes[f"{DEPTH}lm_head.{k}.weight"] = (known.codebook_size, known.depth.hidden)
    return shapes


def _codes(k: int) -> str:
    """Return the name of the embedding table of codebook k + 1, which backbone and depth transformer share."""
    return f"{DEPTH}model.codec_embedding.{k}.weight"


def layer_shapes(prefix: str, numbers: Numbers) -> dict[str, tuple[int, ...]]:
    """Map the tensor names of Qwen3 layers and the final norm to their shapes."""
    width, inner, head_dim = (numbers.number(name) for name in ("hidden_size", "intermediate_size", "head_dim"))
    queries, keys = (head_dim * numbers.number(f"num_{name}_heads") for name in ("attention", "key_value"))
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "self_attn.q_norm": (head_dim,),
        "self_attn.k_norm": (head_dim,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    layers = range(numbers.number("num_hidden_layers"))
    named = {f"{prefix}layers.{layer}.{name}.weight": shape for layer in layers for name, shape in shapes.items()}
    return named | {f"{prefix}norm.weight": (width,)}


def plan(known: Qwen3TtsVocabulary, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> Plan:
    """Return the plan of tensors to write.

    A table or head that combines several published tensors is planned under the name of the first one, and its edit
    function reads the others.

    Args:
        known: Vocabulary.
        shapes: Shapes of the published tensors by name.
        tensors: Published tensors by name.
    """
    size = known.codebook_size
    num_others = known.num_codebooks - 1
    codec = known.codec
    other = merged_reader(tensors, shapes)

    def rows_of_all_ids(stored: Tensor) -> Tensor:
        tables = [other(CODES, stored), *(other(_codes(k), stored) for k in range(num_others))]
        return torch.cat([_text_rows(stored, other), *tables])

    def rows_of_codes(stored: Tensor) -> Tensor:
        tables = torch.cat(
            [other(CODES, stored)[:size], stored, *(other(_codes(k), stored) for k in range(1, num_others - 1))]
        )
        if known.depth.projection is None:
            return tables
        weight, bias = (other(f"{PROJECTION}{part}", stored).float() for part in ("weight", "bias"))
        return F.linear(tables.float(), weight, bias).to(stored.dtype)

    def pad_of_text(stored: Tensor) -> Tensor:
        pad = known.text.pad
        return _text_rows(other(EMBEDDINGS, stored)[pad : pad + 1], other)[0]

    def heads(stored: Tensor) -> Tensor:
        return torch.stack([stored, *(other(f"{DEPTH}lm_head.{k}.weight", stored) for k in range(1, num_others))])

    edits: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        EMBEDDINGS: ("model.embed_tokens.weight", rows_of_all_ids),
        HEAD: ("depth.first_head", lambda stored: torch.cat([stored[:size], stored[codec.eos : codec.eos + 1]])),
        _codes(0): ("depth.embed", rows_of_codes),
        f"{DEPTH}lm_head.0.weight": ("depth.heads", heads),
    }
    if known.kind == "base":
        edits[f"{TEXT_PROJECTION}2.bias"] = ("adaptor.pad", pad_of_text)
    parts = {name: Part(new, shapes[name], edit) for name, (new, edit) in edits.items()}
    for name, shape in shapes.items():
        if name.startswith((f"{TALKER}layers.", f"{TALKER}norm.")):
            parts[name] = Part(f"model.{name.removeprefix(TALKER)}", shape)
        elif name.startswith((f"{DEPTH}model.layers.", f"{DEPTH}model.norm.")):
            within = name.removeprefix(f"{DEPTH}model.")
            parts[name] = Part("depth." + within.replace("self_attn.", "").replace("mlp.", ""), shape)
        elif name.startswith(PROJECTION):
            parts[name] = Part(f"depth.project.{name.removeprefix(PROJECTION)}", shape)
    return parts


ROWS_AT_ONCE = 8192  # rows of the text table; a float32 copy of the whole table would take 1.2 GB


def _text_rows(stored: Tensor, other: Callable[[str, Tensor], Tensor]) -> Tensor:
    """Return the text embeddings after the text projection, computed in float32 and cast once to the stored dtype."""
    (first, first_bias), (second, second_bias) = (
        [other(f"{TEXT_PROJECTION}{layer}.{part}", stored).float() for part in ("weight", "bias")] for layer in (1, 2)
    )
    parts = [
        F.linear(F.silu(F.linear(rows.float(), first, first_bias)), second, second_bias).to(stored.dtype)
        for rows in stored.split(ROWS_AT_ONCE)
    ]
    return torch.cat(parts)
