"""Conversion of Moshi releases in transformers format, which has Mimi in the same files.

It supports https://huggingface.co/kmhf/hf-moshiko, kmhf/hf-moshika, and models that
`MoshiForConditionalGeneration.save_pretrained` wrote. The weights of the depth transformer are tensors of all steps,
[K, out, in]. The delays are those of the class: none for the first codebook, and a row for each of the others.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError
from stretto.family.base import DepthSpec
from stretto.family.conversion import Contents, Converted, Release, check_folded, common_record, integer
from stretto.untrusted_files import entry
from stretto.weights.loading import Part, Plan
from stretto_kyutai.kyutai_stt.convert import (
    check_config,
    check_tokenizer,
    check_width,
)
from stretto_kyutai.kyutai_stt.convert_transformers import (
    LAYERS_EXPECTED,
    backbone_plan,
    backbone_record,
    codec_network,
    followed_by,
    inner_width,
    positive,
)
from stretto_kyutai.moshi.family import NAME, MoshiVocabulary

IS_BARE = True  # the tokenizer need not be byte-level
BACKBONE = "decoder.model."
DEPTH = "depth_decoder."
EMBEDDINGS = f"{BACKBONE}embed_tokens.weight"
DEPTH_CONFIG = "depth_decoder_config"
EXPECTED = {"model_type": ("moshi",), **LAYERS_EXPECTED}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including Mimi."""
    config = contents.config
    tensors = contents.tensors
    check_config(config, EXPECTED)
    known = vocabulary(config)
    check_tokenizer(contents.tokenizer, known.num_text_ids)
    # text is sampled from `depth.first_head`
    record = {
        **backbone_record(config),
        "max_position_embeddings": known.max_model_len,
        **common_record(NAME, known, known.vocab_size, contents),
    }
    codec = codec_network(config, "audio_encoder_config", "audio_encoder.", known.num_codebooks, known.codebook_size)
    layers, folded = backbone_plan(config, BACKBONE, tensors)
    steps, more = depth_plan(known.depth, tensors)
    tables, others = table_plan(integer(config, "hidden_size"), known, tensors)
    folded |= more | others
    check_folded(tensors, folded)
    return Converted(record, layers | steps | tables, (), tuple(folded), (codec,))


def vocabulary(config: Mapping[str, Any]) -> MoshiVocabulary:
    """Return the vocabulary of a release."""
    num_codebooks = integer(config, "num_codebooks", 255)
    return MoshiVocabulary(
        num_text_ids=integer(config, "vocab_size"),
        num_codebooks=num_codebooks,
        codebook_size=integer(config, "audio_vocab_size"),
        delays=(0, *[1] * (num_codebooks - 1)),
        depth=depth_spec(config, num_codebooks),
    )


def depth_spec(config: Mapping[str, Any], num_steps: int) -> DepthSpec:
    """Return the hyperparameters of the depth transformer, whose attention must reach all of its steps."""

    def size(name: str) -> int:
        return integer(config, f"{DEPTH_CONFIG}.{name}")

    width = size("hidden_size")
    heads = size("num_attention_heads")
    section = entry(config, DEPTH_CONFIG)
    check_width(f"{DEPTH_CONFIG}.hidden_size", width, heads)
    supported = {
        "hidden_act": ("silu",),
        "num_key_value_heads": (heads, None),
        "head_dim": (width // heads, None),
        "num_codebooks": (num_steps, None),
    }
    check_config(
        {f"{DEPTH_CONFIG}.{name}": section.get(name) for name in supported},
        {f"{DEPTH_CONFIG}.{name}": allowed for name, allowed in supported.items()},
    )
    if (window := size("sliding_window")) < num_steps:
        expected = f"at least the {num_steps} steps of a frame"
        raise CheckpointError(f"config.json: {DEPTH_CONFIG}.sliding_window: expected {expected}, got {window}")
    return DepthSpec(
        hidden=width,
        intermediate=inner_width(config, f"{DEPTH_CONFIG}.ffn_dim"),
        num_layers=size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        eps=positive(config, f"{DEPTH_CONFIG}.rms_norm_eps"),
        schedule=tuple(range(num_steps)),
    )


def table_plan(
    width: int, known: MoshiVocabulary, tensors: Mapping[str, Tensor]
) -> tuple[Plan, dict[str, tuple[int, ...]]]:
    """Return the plan of the embeddings and heads, and the shapes of the tensors that are merged into them."""
    text = known.num_text_ids
    size = known.codebook_size
    depth = known.depth
    codes = tuple(f"embed_tokens.{k}.weight" for k in range(known.num_tables))
    depth_codes = tuple(f"{DEPTH}embed_tokens.{k}.weight" for k in range(known.num_codebooks - 1))
    folded: dict[str, tuple[int, ...]] = dict.fromkeys(codes, (size + 1, width))
    folded |= dict.fromkeys(depth_codes, (size + 1, depth.hidden))
    all_codes = followed_by(tensors, codes, known.vocab_size)

    def table(stored: Tensor) -> Tensor:
        """Return the embeddings of text, initial text, our own two ids, and all codes, [V, H]."""
        return all_codes(torch.cat([stored, stored.new_zeros(2, width)]))

    def depth_table(stored: Tensor) -> Tensor:
        """Return the embeddings of the ids that the depth transformer reads; it never reads initial ids."""
        if stored.is_meta:
            return stored.new_empty(text + len(depth_codes) * size, depth.hidden)
        return torch.cat([stored[:text], *(tensors[name][:size].to(stored.dtype) for name in depth_codes)])

    parts = {
        EMBEDDINGS: Part("model.embed_tokens.weight", (text + 1, width), table),
        "decoder.lm_head.weight": Part("depth.first_head", (text, width)),
        f"{DEPTH}text_embed_tokens.weight": Part("depth.embed", (text + 1, depth.hidden), depth_table),
        f"{DEPTH}input_projections.weight": Part(
            "depth.project.weight", (known.num_codebooks, depth.hidden, width), by_step
        ),
        f"{DEPTH}lm_heads.weight": Part("depth.heads", (known.num_codebooks, size, depth.hidden)),
    }
    return parts, folded


def by_step(stored: Tensor) -> Tensor:
    """Return the weights of all steps, one after the other: [K, out, in] -> [K * out, in]."""
    return stored.flatten(0, 1)


def depth_plan(depth: DepthSpec, tensors: Mapping[str, Tensor]) -> tuple[Plan, dict[str, tuple[int, ...]]]:
    """Return the plan of the depth transformer's layers, and the shapes of the tensors merged into others."""
    parts: Plan = {}
    folded: dict[str, tuple[int, ...]] = {}
    steps = depth.num_sets
    hidden = depth.hidden
    inner = depth.intermediate
    square = (steps, hidden, hidden)
    for layer in range(depth.num_layers):
        stored = f"{DEPTH}layers.{layer}"
        own = f"depth.layers.{layer}"
        queries, keys, values = (f"{stored}.self_attn.{letter}_proj.linear.weight" for letter in "qkv")
        folded |= dict.fromkeys((keys, values), square)

        def fused(stored: Tensor, others: tuple[str, str] = (keys, values)) -> Tensor:
            """Return queries, keys and values of the first step, then those of the second, and so on."""
            if stored.is_meta:
                return stored.new_empty(3 * steps * hidden, hidden)
            return by_step(torch.cat([stored, *(tensors[name].to(stored.dtype) for name in others)], 1))

        parts[queries] = Part(f"{own}.qkv_proj.weight", square, fused)
        parts[f"{stored}.self_attn.o_proj.linear.weight"] = Part(f"{own}.o_proj.weight", square, by_step)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            parts[f"{stored}.{norm}.weight"] = Part(f"{own}.{norm}.weight", (hidden,))
        parts[f"{stored}.mlp.fc1.weight"] = of_each_step(own, "gate_up_proj", (steps, 2 * inner, hidden))
        parts[f"{stored}.mlp.fc2.weight"] = of_each_step(own, "down_proj", (steps, hidden, inner))
    return parts, folded


def of_each_step(layer: str, name: str, shape: tuple[int, int, int]) -> Part:
    """Return the part that splits the weights of all steps into a tensor for each step.

    Args:
        layer: Name of the layer in the checkpoint.
        name: Name of the weights in it.
        shape: Shape of the published tensor, [K, out, in].
    """

    def part(step: int, also: tuple[Part, ...] = ()) -> Part:
        return Part(f"{layer}.sets.{step}.{name}.weight", shape, lambda stored: stored[step], also=also)

    return part(0, tuple(map(part, range(1, shape[0]))))
