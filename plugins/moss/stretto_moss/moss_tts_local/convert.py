"""Conversion of MOSS-TTS-Local-Transformer v1.5 releases (`model_type` moss_tts_local), as published by OpenMOSS.

A release has `config.json`, the weights in safetensors files, and the tokenizer. The codec, MOSS-Audio-Tokenizer v2, is
a repository of its own. The tables of text and of all codebooks become one. The heads of the codebooks are copies of
their tables, and may be missing. If the head that decides between a frame and the end is missing, it is made of two
rows of the table of text. The depth transformer's rotations pair neighbouring features; its queries and keys are
reordered, so that feature i is paired with feature i + D / 2.
"""

from collections.abc import Mapping
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
    """`gpt2_config`: the depth transformer, with the defaults of transformers."""

    n_embd: Size = 768
    n_head: Size = 12
    n_inner: Size | None = None
    n_layer: NumLayers = 12
    rope_base: Theta = 1e4
    layer_norm_epsilon: Epsilon = 1e-5
    position_embedding_type: Literal["rope"]
    activation_function: Literal["silu", "gelu"]
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.n_embd % (2 * self.n_head):
            raise InvalidRequest("n_head", "heads of an even size", f"{self.n_embd} / {self.n_head}")
        return self


class Config(MarkedSpeech):
    """config.json of a release, which has the backbone under two names."""

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
        if self.audio_codebook_sizes and self.audio_codebook_sizes != [self.audio_vocab_size] * self.n_vq:
            expected = f"{self.n_vq} times {self.audio_vocab_size}"
            raise InvalidRequest("audio_codebook_sizes", expected, self.audio_codebook_sizes)
        if self.gpt2_config.n_embd != width:
            raise InvalidRequest("gpt2_config.n_embd", str(width), self.gpt2_config.n_embd)
        return self

    @property
    def depth(self) -> Gpt2Spec:
        """Hyperparameters of the depth transformer."""
        layers = self.gpt2_config
        return Gpt2Spec(
            hidden=layers.n_embd,
            intermediate=layers.n_inner or 4 * layers.n_embd,
            num_layers=self.local_transformer_layers or layers.n_layer,
            num_heads=layers.n_head,
            num_kv_heads=layers.n_head,
            head_dim=layers.n_embd // layers.n_head,
            eps=layers.layer_norm_epsilon,
            rope={"rope_type": "default", "rope_theta": layers.rope_base},
            projection=None,
            num_first=2,
            gpt2_activation=layers.activation_function,
        )


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype of the release, or of its language model if only that is stated."""
    section = language_section(config)
    return dtype_of(config) or (dtype_of(section) if isinstance(section, Mapping) else None)


def language_section(config: Mapping[str, Any]) -> Any:
    """Return the section of the backbone, which config.json has under two names."""
    return config.get("qwen3_config", config.get("language_config"))


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    config = Config.read(contents.config)
    vocab = vocabulary(config)
    contents.tokenizer.ids_of((), vocab.num_text_ids)
    check_copies(contents.tensors, vocab.num_codebooks)
    record = {
        **config.language_config.record,
        **common_record("moss_tts_local", vocab, vocab.layout.vocab_size, contents),
    }
    return Converted(record, plan(config, vocab), (TEXT_HEAD, COPIES))


def vocabulary(config: Config) -> LocalVocabulary:
    """Return the vocabulary of a release."""
    return LocalVocabulary(
        num_text_ids=config.language_config.vocab_size,
        num_codebooks=config.n_vq,
        codebook_size=config.audio_vocab_size,
        **config.ids(IDS),
        max_model_len=min(MAX_MODEL_LEN, config.language_config.max_position_embeddings),
        depth=config.depth,
    )


def local_shapes(depth: DepthSpec) -> dict[str, Shape]:
    """Return the shapes of the depth transformer's layers and final norm, by published name."""
    width = depth.hidden
    linear = {"attn.c_attn": (3 * width, width), "attn.c_proj": (width, width)}
    linear |= {"mlp.fc_in": (depth.intermediate, width), "mlp.fc_out": (width, depth.intermediate)}
    shapes: dict[str, Shape] = {}
    for layer in (f"{LOCAL}h.{number}." for number in range(depth.num_layers)):
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        shapes |= {f"{layer}{norm}.{tensor}": (width,) for norm in ("ln_1", "ln_2") for tensor in ("weight", "bias")}
    return shapes | {f"{LOCAL}ln_f.{tensor}": (width,) for tensor in ("weight", "bias")}


def check_copies(tensors: Mapping[str, Tensor], num_codebooks: int) -> None:
    """Raise CheckpointError unless the heads of the codebooks equal their tables, as in the authors' class."""
    for number in range(num_codebooks):
        head = f"{COPIES}{number}.weight"
        table = f"audio_embeddings.{number}.weight"
        if head in tensors and table in tensors and not torch.equal(tensors[head], tensors[table]):
            raise CheckpointError(f"{head}: expected a copy of {table}, got other numbers")


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
    return parts | {name: depth_part(name, shape, depth.num_heads) for name, shape in local_shapes(depth).items()}


def depth_part(name: str, shape: tuple[int, ...], num_heads: int) -> Part:
    """Return how a tensor of the depth transformer's layers and final norm is written."""
    words = name.removeprefix(LOCAL).split(".")
    if words[0] == "ln_f":
        return Part(f"depth.norm.{words[1]}", shape)
    layer = f"depth.layers.{words[1]}"
    module = words[-2]
    tensor_name = words[-1]
    if module != "c_attn":
        return Part(f"{layer}.{'o_proj' if module == 'c_proj' else module}.{tensor_name}", shape)

    def third(number: int, tensor: Tensor) -> Tensor:
        chosen = tensor.chunk(3)[number]
        return chosen.contiguous() if number == 2 else paired_by_half(chosen, num_heads)

    query, *others = (
        Part(f"{layer}.{letter}_proj.{tensor_name}", shape, partial(third, number))
        for number, letter in enumerate("qkv")
    )
    return replace(query, also=tuple(others))
