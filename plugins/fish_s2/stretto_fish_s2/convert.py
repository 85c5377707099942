"""Conversion of Fish Audio S2 releases (`model_type` fish_qwen3_omni), with names and shapes as published.

The release is https://huggingface.co/fishaudio/s2-pro. The authors' rotary embedding turns neighbouring elements of a
head, vLLM's those of the two halves, so the rows of queries and keys are reordered. The factor of a frame's summed
embeddings is multiplied into the tables, and codebook 0's own table is added to the text table's semantic tokens. The
text table is also the head, of which only the semantic tokens and the end are needed.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.base import DepthSpec
from stretto.family.conversion import (
    Contents,
    Converted,
    Release,
    Tokenizer,
    common_record,
    in_halves,
    integer,
    merged_reader,
    section,
    unchanged,
)
from stretto.untrusted_files import check_value, entry
from stretto.weights.loading import Part, Plan, check
from stretto_fish_s2.convert_codec import FILE, codec_network
from stretto_fish_s2.family import MAX_MODEL_LEN, NAME, FishVocabulary
from stretto_fish_s2.recognise import MODEL_TYPE

TEXT = "text_model.model."
FAST = "audio_decoder."
EMBEDDINGS = f"{TEXT}embeddings.weight"
CODES = f"{FAST}codebook_embeddings.weight"
MARKS = {CODES: "Fish Audio S2"}
MAX_LAYERS = 1 << 8
MAX_SIZE = 1 << 16
MAX_IDS = 1 << 20
MAX_CODEBOOKS = 32
MAX_THETA = 1e9
MAX_EPS = 1.0
# Values of each section of config.json, and names of the depth transformer's parameters.
NUMBERS = {
    "dim": "hidden",
    "intermediate_size": "intermediate",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_local_heads": "num_kv_heads",
    "head_dim": "head_dim",
}
# Names of tokens, and the keys of config.json that have their ids.
TOKENS = {
    "turn_start": ("<|im_start|>", None),
    "turn_end": ("<|im_end|>", "eos_token_id"),
    "voice": ("<|voice|>", None),
    "pad": ("<|pad|>", "pad_token_id"),
    "first_semantic": ("<|semantic:0|>", "semantic_start_token_id"),
}
LAST_SEMANTIC = "semantic_end_token_id"


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    layers, known = read_config(contents.config, contents.tokenizer)
    shapes = published_shapes(layers, known)
    check(unchanged(shapes), contents.tensors, ())
    record = {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": layers.hidden,
        "intermediate_size": layers.intermediate,
        "num_hidden_layers": layers.num_layers,
        "num_attention_heads": layers.num_heads,
        "num_key_value_heads": layers.num_kv_heads,
        "head_dim": layers.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": known.max_model_len,
        "rms_norm_eps": layers.eps,
        "rope_parameters": dict(layers.rope),
        "attention_bias": False,
        **common_record(NAME, known, known.layout.vocab_size, contents),
    }
    codec = codec_network(release.folder)
    expected = f"{known.num_codebooks} codebooks, the first of {known.codebook_size} codes"
    number = 1 + codec.record["n_codebooks"]
    size = codec.record["semantic_codebook_size"]
    if (number, size) != (known.num_codebooks, known.codebook_size):
        got = f"{number} and {size}"
        raise CheckpointError(f"{release.folder / FILE}: expected {expected}, as in config.json, got {got}")
    return Converted(record, plan(layers, known, contents.tensors), (), (CODES,), (codec,))


def read_config(record: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[DepthSpec, FishVocabulary]:
    """Return the hyperparameters of the backbone's layers, and the vocabulary.

    Args:
        record: config.json of a release.
        tokenizer: Tokenizer of the release.

    Raises:
        CheckpointError: A value is missing, invalid or not supported, or belongs to another model.
    """
    check_value("model_type", record.get("model_type"), MODEL_TYPE)
    text, audio = (section(record, name) for name in ("text_config", "audio_decoder_config"))
    layers = layer_spec(text, "text_config.")
    depth = layer_spec(audio, "audio_decoder_config.")
    num_ids = integer(text, "vocab_size", MAX_IDS, place="text_config.")
    num_codebooks = integer(audio, "num_codebooks", MAX_CODEBOOKS, place="audio_decoder_config.")
    size = integer(audio, "vocab_size", MAX_SIZE, place="audio_decoder_config.")
    max_rows = integer(text, "max_seq_len", place="text_config.")
    for name, found, expected in (
        ("text_config.attention_qk_norm", layers.has_head_norms, True),
        ("text_config.tie_word_embeddings", text.get("tie_word_embeddings", True), True),
        ("audio_decoder_config.attention_qk_norm", depth.has_head_norms, False),
        ("audio_decoder_config.dim", depth.hidden, layers.hidden),
        ("audio_decoder_config.text_dim", audio.get("text_dim", layers.hidden), layers.hidden),
        ("audio_decoder_config.norm_eps", depth.eps, layers.eps),
        ("audio_decoder_config.rope_base", depth.rope["rope_theta"], layers.rope["rope_theta"]),
    ):
        check_value(name, found, expected)
    if num_codebooks < 2:
        raise CheckpointError(
            f"config.json: audio_decoder_config.num_codebooks: expected at least 2, got {num_codebooks}"
        )
    last = f"<|semantic:{size - 1}|>"
    ids = tokenizer.ids_of([*(name for name, _ in TOKENS.values()), last], num_ids)
    first = ids[TOKENS["first_semantic"][0]]
    if ids[last] != first + size - 1:
        raise CheckpointError(f"{tokenizer.folder}: expected {last} with id {first + size - 1}, got {ids[last]}")
    for name, key in (*TOKENS.values(), (last, LAST_SEMANTIC)):
        if key is not None and record.get(key, ids[name]) != ids[name]:
            raise CheckpointError(f"config.json: {key}: expected {ids[name]} ({name}), got {shown(record[key])}")
    known = FishVocabulary(
        num_text_ids=num_ids,
        num_codebooks=num_codebooks,
        codebook_size=size,
        **{field: ids[name] for field, (name, _) in TOKENS.items()},
        max_model_len=min(MAX_MODEL_LEN, max_rows),
        depth=depth,
    )
    return layers, known


def layer_spec(numbers: Mapping[str, Any], place: str) -> DepthSpec:
    """Return the hyperparameters of a stack of layers.

    Args:
        numbers: Section of config.json.
        place: Path of the section, with a dot at the end.

    Raises:
        CheckpointError: A value is missing, invalid or not supported.
    """
    sizes: dict[str, Any] = {
        own: integer(numbers, name, MAX_LAYERS if name == "n_layer" else MAX_SIZE, place=place)
        for name, own in NUMBERS.items()
    }
    theta = entry(numbers, "rope_base")
    eps = entry(numbers, "norm_eps")
    for name, value, most in (("rope_base", theta, MAX_THETA), ("norm_eps", eps, MAX_EPS)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
            raise CheckpointError(f"config.json: {place}{name}: expected a number in (0, {most:g}], got {shown(value)}")
    for name in ("attention_qkv_bias", "attention_o_bias", "use_moe"):
        if (found := numbers.get(name, False)) is not False:
            raise CheckpointError(f"config.json: {place}{name}: expected false, got {shown(found)}")
    if sizes["head_dim"] % 2:
        raise CheckpointError(f"config.json: {place}head_dim: expected an even number, got {sizes['head_dim']}")
    heads = sizes["num_heads"]
    if heads % sizes["num_kv_heads"]:
        expected = f"a multiple of {sizes['num_kv_heads']} (n_local_heads)"
        raise CheckpointError(f"config.json: {place}n_head: expected {expected}, got {heads}")
    return DepthSpec(
        **sizes,
        eps=float(eps),
        rope={"rope_type": "default", "rope_theta": float(theta)},
        projection=None,
        has_head_norms=numbers.get("attention_qk_norm", False),
    )


def published_shapes(layers: DepthSpec, known: FishVocabulary) -> dict[str, tuple[int, ...]]:
    """Return the shape of each published tensor by name."""
    width = layers.hidden
    table = (known.codebook_size, known.depth.hidden)
    return {
        EMBEDDINGS: (known.num_text_ids, width),
        CODES: (known.num_codebooks * known.codebook_size, width),
        f"{FAST}embeddings.weight": table,
        f"{FAST}output.weight": table,
        **{name: part.stored for name, part in layer_parts(TEXT, layers, "model.", "self_attn.", "mlp.").items()},
        **{name: part.stored for name, part in layer_parts(FAST, known.depth, "depth.").items()},
    }


def layer_parts(prefix: str, spec: DepthSpec, own: str, attention: str = "", mlp: str = "") -> Plan:
    """Return the tensors of a stack of layers and its final norm, by published name.

    Args:
        prefix: Prefix of the published names.
        spec: Hyperparameters.
        own: Prefix of the names in the checkpoint.
        attention, mlp: Prefixes of the names of a layer's parts in the checkpoint.
    """
    width = spec.hidden
    inner = spec.intermediate
    queries = spec.num_heads * spec.head_dim
    keys = spec.num_kv_heads * spec.head_dim
    parts: Plan = {f"{prefix}norm.weight": Part(f"{own}norm.weight", (width,))}
    for number in range(spec.num_layers):
        name = f"{prefix}layers.{number}."
        layer = f"{own}layers.{number}."
        plain = {
            "attention.wo": (f"{attention}o_proj", (width, queries)),
            "feed_forward.w1": (f"{mlp}gate_proj", (inner, width)),
            "feed_forward.w3": (f"{mlp}up_proj", (inner, width)),
            "feed_forward.w2": (f"{mlp}down_proj", (width, inner)),
            "attention_norm": ("input_layernorm", (width,)),
            "ffn_norm": ("post_attention_layernorm", (width,)),
        }
        for published, (ours, shape) in plain.items():
            parts[f"{name}{published}.weight"] = Part(f"{layer}{ours}.weight", shape)
        fused = (queries + 2 * keys, width)
        at = f"{layer}{attention}"
        parts[f"{name}attention.wqkv.weight"] = Part(
            f"{at}q_proj.weight",
            fused,
            lambda stored: in_halves(stored[:queries], spec.head_dim),
            also=(
                Part(f"{at}k_proj.weight", fused, lambda stored: in_halves(stored[queries:-keys], spec.head_dim)),
                Part(f"{at}v_proj.weight", fused, lambda stored: stored[-keys:]),
            ),
        )
        for each in "qk" if spec.has_head_norms else "":
            parts[f"{name}attention.{each}_norm.weight"] = Part(
                f"{at}{each}_norm.weight", (spec.head_dim,), lambda stored: in_halves(stored, spec.head_dim)
            )
    return parts


def plan(layers: DepthSpec, known: FishVocabulary, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the tensors to write, by published name.

    Args:
        layers: Hyperparameters of the backbone's layers.
        known: Vocabulary.
        tensors: Published tensors by name.
    """
    shapes = published_shapes(layers, known)
    size = known.codebook_size
    num_others = known.num_codebooks - 1
    scale = 1 / math.sqrt(known.num_codebooks + 1)
    semantic = known.layout.audio[0]
    read = merged_reader(tensors, shapes)

    def rows_of_all_ids(text: Tensor) -> Tensor:
        codes = read(CODES, text).float()
        rows = text[semantic.start : semantic.stop].float() + codes[:size]
        frames = (torch.cat([rows, codes[size:]]) * scale).to(text.dtype)
        return torch.cat([text[: semantic.start], frames[:size], text[semantic.stop :], frames[size:]])

    def first_head(text: Tensor) -> Tensor:
        return torch.cat([text[semantic.start : semantic.stop], text[known.turn_end : known.turn_end + 1]])

    text = shapes[EMBEDDINGS]
    head = Part("depth.first_head", text, first_head)
    table = f"{FAST}embeddings.weight"
    output = f"{FAST}output.weight"
    return {
        EMBEDDINGS: Part("model.embed_tokens.weight", text, rows_of_all_ids, also=(head,)),
        table: Part("depth.embed", shapes[table], lambda stored: stored.repeat(num_others, 1)),
        output: Part("depth.heads", shapes[output], lambda stored: stored.expand(num_others, -1, -1)),
        **layer_parts(TEXT, layers, "model.", "self_attn.", "mlp."),
        **layer_parts(FAST, known.depth, "depth."),
    }
