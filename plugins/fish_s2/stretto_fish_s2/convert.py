"""Conversion of Fish Audio S2 releases (`model_type` fish_qwen3_omni), with names and shapes as published.

The release is https://huggingface.co/fishaudio/s2-pro. The rows of queries and keys are reordered, because the authors'
rotary embedding pairs neighbouring elements of a head, and vLLM's pairs those of the two halves. The embeddings of a
frame are summed and scaled by a factor, which is folded into the tables. Codebook 0's own table is added to the text
table's semantic tokens. The text table is also the head, of which only the semantic tokens and the end are needed.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.base import DepthSpec
from stretto.family.conversion import Contents, Converted, Release, Tokenizer, common_record, in_halves
from stretto.family.sections import Epsilon, Integer, NumLayers, Section, Size, Theta
from stretto.untrusted_files import check_value
from stretto.weights.loading import Part, Plan, Shape
from stretto_fish_s2.convert_codec import FILE, codec_network
from stretto_fish_s2.family import MAX_MODEL_LEN, NAME, FishVocabulary

TEXT = "text_model.model."
FAST = "audio_decoder."
EMBEDDINGS = f"{TEXT}embeddings.weight"
CODES = f"{FAST}codebook_embeddings.weight"
MARKS = {CODES: "Fish Audio S2"}
# Names of tokens, and the keys of config.json that have their ids.
TOKENS = {
    "turn_start": ("<|im_start|>", None),
    "turn_end": ("<|im_end|>", "eos_token_id"),
    "voice": ("<|voice|>", None),
    "pad": ("<|pad|>", "pad_token_id"),
    "first_semantic": ("<|semantic:0|>", "semantic_start_token_id"),
}
LAST_SEMANTIC = "semantic_end_token_id"


class Layers(Section):
    """Hyperparameters of a stack of layers."""

    dim: Size
    intermediate_size: Size
    n_layer: NumLayers
    n_head: Size
    n_local_heads: Size
    head_dim: Annotated[int, Field(ge=2, le=1 << 16, multiple_of=2)]
    rope_base: Theta
    norm_eps: Epsilon
    attention_qkv_bias: Literal[False] = False
    attention_o_bias: Literal[False] = False
    use_moe: Literal[False] = False

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.n_head % self.n_local_heads:
            raise InvalidRequest("n_head", f"a multiple of {self.n_local_heads} (n_local_heads)", self.n_head)
        return self

    def spec(self, has_head_norms: bool = False) -> DepthSpec:
        """Return the hyperparameters under our names."""
        return DepthSpec(
            hidden=self.dim,
            intermediate=self.intermediate_size,
            num_layers=self.n_layer,
            num_heads=self.n_head,
            num_kv_heads=self.n_local_heads,
            head_dim=self.head_dim,
            eps=self.norm_eps,
            rope={"rope_type": "default", "rope_theta": self.rope_base},
            projection=None,
            has_head_norms=has_head_norms,
        )


class Text(Layers):
    """`text_config`: the backbone."""

    vocab_size: Integer
    max_seq_len: Integer
    attention_qk_norm: Literal[True]
    tie_word_embeddings: Literal[True] = True


class Audio(Layers):
    """`audio_decoder_config`: the depth transformer."""

    vocab_size: Size
    num_codebooks: Annotated[int, Field(ge=2, le=32)]
    attention_qk_norm: Literal[False] = False
    text_dim: int | None = None


class Config(Section):
    """Fields of a release's config.json that the conversion reads."""

    model_type: Literal["fish_qwen3_omni"]
    text_config: Text
    audio_decoder_config: Audio


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    layers, vocabulary = read_config(contents.config, contents.tokenizer)
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
        "max_position_embeddings": vocabulary.max_model_len,
        "rms_norm_eps": layers.eps,
        "rope_parameters": dict(layers.rope),
        "attention_bias": False,
        **common_record(NAME, vocabulary, vocabulary.layout.vocab_size, contents),
    }
    codec = codec_network(release.folder)
    expected = f"{vocabulary.num_codebooks} codebooks, the first of {vocabulary.codebook_size} codes"
    number = 1 + codec.record["n_codebooks"]
    size = codec.record["semantic_codebook_size"]
    if (number, size) != (vocabulary.num_codebooks, vocabulary.codebook_size):
        got = f"{number} and {size}"
        raise CheckpointError(f"{release.folder / FILE}: expected {expected}, as in config.json, got {got}")
    return Converted(record, plan(layers, vocabulary), (), networks=(codec,))


def read_config(record: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[DepthSpec, FishVocabulary]:
    """Return the hyperparameters of the backbone's layers, and the vocabulary."""
    config = Config.read(record)
    text = config.text_config
    audio = config.audio_decoder_config
    for name, actual, expected in (
        ("dim", audio.dim, text.dim),
        ("text_dim", audio.text_dim, text.dim),
        ("norm_eps", audio.norm_eps, text.norm_eps),
        ("rope_base", audio.rope_base, text.rope_base),
    ):
        check_value(f"audio_decoder_config.{name}", expected if actual is None else actual, expected)
    num_ids = text.vocab_size
    size = audio.vocab_size
    last = f"<|semantic:{size - 1}|>"
    ids = tokenizer.ids_of([*(name for name, _ in TOKENS.values()), last], num_ids)
    first = ids[TOKENS["first_semantic"][0]]
    if ids[last] != first + size - 1:
        raise CheckpointError(f"{tokenizer.folder}: expected {last} with id {first + size - 1}, got {ids[last]}")
    for name, key in (*TOKENS.values(), (last, LAST_SEMANTIC)):
        if key is not None and record.get(key, ids[name]) != ids[name]:
            raise CheckpointError(f"config.json: {key}: expected {ids[name]} ({name}), got {shown(record[key])}")
    vocabulary = FishVocabulary(
        num_text_ids=num_ids,
        num_codebooks=audio.num_codebooks,
        codebook_size=size,
        **{field: ids[name] for field, (name, _) in TOKENS.items()},
        max_model_len=min(MAX_MODEL_LEN, text.max_seq_len),
        depth=audio.spec(),
    )
    return text.spec(has_head_norms=True), vocabulary


def layer_parts(prefix: str, spec: DepthSpec, ours_prefix: str, attention: str = "", mlp: str = "") -> Plan:
    """Return the tensors of a stack of layers and its final norm, by published name.

    Args:
        attention, mlp: Prefixes of the names of a layer's parts in the checkpoint.
    """
    width = spec.hidden
    inner = spec.intermediate
    queries = spec.num_heads * spec.head_dim
    keys = spec.num_kv_heads * spec.head_dim
    parts: Plan = {f"{prefix}norm.weight": Part(f"{ours_prefix}norm.weight", (width,))}
    for number in range(spec.num_layers):
        name = f"{prefix}layers.{number}."
        layer = f"{ours_prefix}layers.{number}."
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
        for letter in "qk" if spec.has_head_norms else "":
            parts[f"{name}attention.{letter}_norm.weight"] = Part(
                f"{at}{letter}_norm.weight", (spec.head_dim,), lambda stored: in_halves(stored, spec.head_dim)
            )
    return parts


def plan(layers: DepthSpec, vocabulary: FishVocabulary) -> Plan:
    """Return the tensors to write, by published name."""
    size = vocabulary.codebook_size
    num_others = vocabulary.num_codebooks - 1
    scale = 1 / math.sqrt(vocabulary.num_codebooks + 1)
    semantic = vocabulary.layout.audio[0]
    text: Shape = (vocabulary.num_text_ids, layers.hidden)
    codes: Shape = (vocabulary.num_codebooks * size, layers.hidden)
    table: Shape = (size, vocabulary.depth.hidden)

    def rows_of_all_ids(text: Tensor, codes: Tensor) -> Tensor:
        codes = codes.float()
        rows = text[semantic.start : semantic.stop].float() + codes[:size]
        frames = (torch.cat([rows, codes[size:]]) * scale).to(text.dtype)
        return torch.cat([text[: semantic.start], frames[:size], text[semantic.stop :], frames[size:]])

    def first_head(text: Tensor) -> Tensor:
        return torch.cat([text[semantic.start : semantic.stop], text[vocabulary.turn_end : vocabulary.turn_end + 1]])

    head = Part("depth.first_head", text, first_head)
    return {
        EMBEDDINGS: Part("model.embed_tokens.weight", text, rows_of_all_ids, also=(head,), others={CODES: codes}),
        f"{FAST}embeddings.weight": Part("depth.embed", table, lambda stored: stored.repeat(num_others, 1)),
        f"{FAST}output.weight": Part("depth.heads", table, lambda stored: stored.expand(num_others, -1, -1)),
        **layer_parts(TEXT, layers, "model.", "self_attn.", "mlp."),
        **layer_parts(FAST, vocabulary.depth, "depth."),
    }
