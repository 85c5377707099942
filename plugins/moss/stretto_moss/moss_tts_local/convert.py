"""Conversion of MOSS-TTS-Local-Transformer v1.5 releases (`model_type` moss_tts_local), as published by OpenMOSS.

A release has `config.json`, the weights in safetensors files, and the tokenizer. The codec, MOSS-Audio-Tokenizer v2, is
in another repository. The tables of text and of all codebooks become one. The heads of the codebooks are copies of
their tables, and may be missing. If the head that decides between a frame and the end is missing, two rows of the table
of text replace it. The depth transformer's rotations pair neighbouring features. Its queries and keys are reordered, so
that feature i is paired with feature i + D / 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.base import DepthSpec
from stretto.family.conversion import Contents, Converted, Release, common_record, concatenated, merged
from stretto.family.layers import layers_plan
from stretto.family.sections import Epsilon, NumLayers, Section, Size, Theta
from stretto.weights.backbones import dtype_of
from stretto.weights.loading import Part, Plan, Shape
from stretto_moss.moss_tts.convert import MarkedSpeech
from stretto_moss.moss_tts.family import MAX_MODEL_LEN
from stretto_moss.moss_tts_local.family import Gpt2Spec, LocalVocabulary

BACKBONE = "transformer."
LOCAL = "local_transformer."
EMBEDDINGS = f"{BACKBONE}embed_tokens.weight"
TEXT_HEAD = "text_lm_head.weight"
COPIES = "audio_lm_heads."
BINARY_HEAD = "local_text_lm_head.weight"
MARKS = {f"{LOCAL}h.0.attn.c_attn.weight": "MOSS-TTS-Local"}
# Keys in config.json of the vocabulary's ids.
IDS = {
    "pad": "pad_token_id",
    "turn_start": "im_start_token_id",
    "turn_end": "im_end_token_id",
    "audio_start": "audio_start_token_id",
    "audio_end": "audio_end_token_id",
    "recorded": "audio_user_slot_token_id",
    "slot": "audio_assistant_slot_token_id",
}


class Gpt2Layers(Section):
    """Section `gpt2_config`: the depth transformer, with the defaults of transformers."""

    n_embd: Size = 768
    n_head: Size = 12
    n_inner: Size | None = None
    n_layer: NumLayers = 12
    rope_base: Theta = 1e4
    layer_norm_epsilon: Epsilon = 1e-5
    position_embedding_type: Literal["rope"]
    activation_function: Literal["silu", "gelu", "gelu_new"]
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.n_embd % (2 * self.n_head):
            raise InvalidRequest("n_head", "heads of an even size", f"{self.n_embd} / {self.n_head}")
        return self

    def depth(self, num_layers: int, num_first: int) -> Gpt2Spec:
        """Return the hyperparameters of a depth transformer with these layers."""
        return Gpt2Spec(
            hidden=self.n_embd,
            intermediate=self.n_inner or 4 * self.n_embd,
            num_layers=num_layers,
            num_heads=self.n_head,
            num_kv_heads=self.n_head,
            head_dim=self.n_embd // self.n_head,
            eps=self.layer_norm_epsilon,
            rope={"rope_type": "default", "rope_theta": self.rope_base},
            projection=None,
            num_first=num_first,
            gpt2_activation=self.activation_function,
        )


class Config(MarkedSpeech):
    """config.json of a release, whose backbone's section has one of two names."""

    model_type: Literal["moss_tts_local"]
    gpt2_config: Gpt2Layers
    n_vq: Annotated[int, Field(ge=2, le=64)] = 12
    audio_codebook_sizes: list[Size] | None = None
    local_transformer_layers: NumLayers | None = None
    local_text_head_mode: Literal["binary", "full_vocab"] = "binary"
    audio_start_token_id: int = 151669
    audio_end_token_id: int = 151670
    audio_assistant_slot_token_id: int = 151656

    @model_validator(mode="before")
    @classmethod
    def _with_one_backbone(cls, record: Any) -> Any:
        has_other_name = isinstance(record, Mapping) and "qwen3_config" in record
        return {**record, "language_config": record["qwen3_config"]} if has_other_name else record

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        width = self.language_config.hidden_size
        check_codebook_sizes(self.audio_codebook_sizes, self.n_vq, self.audio_vocab_size)
        if self.gpt2_config.n_embd != width:
            raise InvalidRequest("gpt2_config.n_embd", str(width), self.gpt2_config.n_embd)
        return self


def check_codebook_sizes(sizes: Sequence[int] | None, num_codebooks: int, codebook_size: int) -> None:
    """Raise InvalidRequest if the release states other codebook sizes. `sizes` is None if it states none."""
    if sizes and [*sizes] != [codebook_size] * num_codebooks:
        raise InvalidRequest("audio_codebook_sizes", f"{num_codebooks} times {codebook_size}", sizes)


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype of the release, or else that of its language model."""
    section = language_section(config)
    return dtype_of(config) or (dtype_of(section) if isinstance(section, Mapping) else None)


def language_section(config: Mapping[str, Any]) -> Any:
    """Return the backbone's section, which has one of two names in config.json."""
    return config.get("qwen3_config", config.get("language_config"))


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    config = Config.read(contents.config)
    vocab = vocabulary(config)
    contents.tokenizer.ids_of((), vocab.num_text_ids)
    check_copies(contents.tensors, {f"{COPIES}{k}.weight": f"audio_embeddings.{k}.weight" for k in range(config.n_vq)})
    record = {
        **config.language_config.record,
        **common_record("moss_tts_local", vocab, vocab.layout.vocab_size, contents),
    }
    return Converted(record, plan(config, vocab), (TEXT_HEAD, COPIES))


def vocabulary(config: Config) -> LocalVocabulary:
    """Return the vocabulary of a release."""
    layers = config.gpt2_config
    return LocalVocabulary(
        num_text_ids=config.language_config.vocab_size,
        num_codebooks=config.n_vq,
        codebook_size=config.audio_vocab_size,
        **config.ids(IDS),
        max_model_len=min(MAX_MODEL_LEN, config.language_config.max_position_embeddings),
        depth=layers.depth(config.local_transformer_layers or layers.n_layer, num_first=2),
    )


def gpt2_shapes(spec: DepthSpec, published: str) -> dict[str, Shape]:
    """Return the shapes of GPT-2's layers and final norm by name. Names begin with `published`."""
    width = spec.hidden
    linear = {"attn.c_attn": (3 * width, width), "attn.c_proj": (width, width)}
    linear |= {"mlp.fc_in": (spec.intermediate, width), "mlp.fc_out": (width, spec.intermediate)}
    shapes: dict[str, Shape] = {}
    for layer in (f"{published}h.{number}." for number in range(spec.num_layers)):
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        shapes |= {f"{layer}{norm}.{tensor}": (width,) for norm in ("ln_1", "ln_2") for tensor in ("weight", "bias")}
    return shapes | {f"{published}ln_f.{tensor}": (width,) for tensor in ("weight", "bias")}


def check_copies(tensors: Mapping[str, Tensor], originals: Mapping[str, str]) -> None:
    """Raise CheckpointError unless each head equals its table (`originals` by head). Missing ones are skipped."""
    for copy, original in originals.items():
        if copy in tensors and original in tensors and not torch.equal(tensors[copy], tensors[original]):
            raise CheckpointError(f"{copy}: expected a copy of {original}, got other numbers")


def paired_by_half(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorder the features of heads [heads * D, ...] from neighbouring pairs to pairs of i and i + D / 2."""
    return tensor.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def plan(config: Config, vocab: LocalVocabulary) -> Plan:
    """Return the tensors to write, by published name."""
    backbone = config.language_config
    is_binary = config.local_text_head_mode == "binary"
    depth = vocab.depth
    width = backbone.hidden_size
    text = (vocab.num_text_ids, width)
    tables = dict.fromkeys(
        (f"audio_embeddings.{k}.weight" for k in range(vocab.num_codebooks)), (vocab.codebook_size, width)
    )
    first, second, *others = tables

    def decisions(text: Tensor) -> Tensor:
        return text[[vocab.slot, vocab.audio_end]]

    def rows_of_codes(*codes: Tensor) -> Tensor:
        return torch.cat([codes[0].new_zeros(1, width), *codes])  # a row of the slot, which is not read

    def heads(second: Tensor, first: Tensor, *others: Tensor) -> Tensor:
        return torch.stack([first, second, *others])

    heads_also = () if is_binary else (Part("depth.first_head", text, decisions),)
    parts: Plan = {
        EMBEDDINGS: Part("model.embed_tokens.weight", text, concatenated, also=heads_also, others=tables),
        **merged("depth.embed", rows_of_codes, dict(list(tables.items())[:-1])),
        **merged("depth.heads", heads, {name: tables[name] for name in (second, first, *others)}),
    }
    if is_binary:
        parts[BINARY_HEAD] = Part("depth.first_head", (2, width))
    parts |= layers_plan(backbone.shapes, BACKBONE)
    return parts | gpt2_plan(depth, LOCAL, "depth.")


def gpt2_plan(spec: DepthSpec, published: str, ours: str, attention: str = "") -> Plan:
    """Return the plan of GPT-2's layers and final norm. `attention` precedes the projections' names within a layer."""
    parts: Plan = {}
    for name, shape in gpt2_shapes(spec, published).items():
        words = name.removeprefix(published).split(".")
        tensor_name = words[-1]
        if words[0] == "ln_f":
            parts[name] = Part(f"{ours}norm.{tensor_name}", shape)
            continue
        layer = f"{ours}layers.{words[1]}."
        module = words[-2]
        if module == "c_attn":
            parts[name] = _projections(f"{layer}{attention}", tensor_name, shape, spec.num_heads)
        elif module == "c_proj":
            parts[name] = Part(f"{layer}{attention}o_proj.{tensor_name}", shape)
        else:
            parts[name] = Part(f"{layer}{module}.{tensor_name}", shape)
    return parts


def _projections(prefix: str, tensor_name: str, shape: Shape, num_heads: int) -> Part:
    """Return the plan that splits joined queries, keys and values into three projections."""

    def third(number: int, tensor: Tensor) -> Tensor:
        chosen = tensor.chunk(3)[number]
        return chosen.contiguous() if number == 2 else paired_by_half(chosen, num_heads)

    query, *others = (
        Part(f"{prefix}{letter}_proj.{tensor_name}", shape, partial(third, number))
        for number, letter in enumerate("qkv")
    )
    return replace(query, also=tuple(others))
