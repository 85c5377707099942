"""Conversion of Moshi releases in transformers format, which has Mimi in the same files.

It supports https://huggingface.co/kmhf/hf-moshiko, kmhf/hf-moshika, and models that
`MoshiForConditionalGeneration.save_pretrained` wrote. The weights of the depth transformer are tensors of all steps,
[K, out, in]. The delays are those of the class: none for the first codebook, and a row for each of the others.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stretto.errors import InvalidRequest
from stretto.family.base import DepthSpec
from stretto.family.conversion import Contents, Converted, Release, common_record, merged
from stretto.family.sections import Integer
from stretto.weights.loading import Part, Plan
from stretto_kyutai.kyutai_stt.convert import check_tokenizer
from stretto_kyutai.kyutai_stt.convert_transformers import Backbone, Layers, backbone_plan, codec_network
from stretto_kyutai.moshi.family import NAME, MoshiVocabulary

IS_BARE = True  # the tokenizer need not be byte-level
BACKBONE = "decoder.model."
DEPTH = "depth_decoder."
EMBEDDINGS = f"{BACKBONE}embed_tokens.weight"


class DepthLayers(Layers):
    """`depth_decoder_config`: layers whose attention must reach all steps."""

    num_codebooks: int | None = None


class Config(Backbone):
    """config.json of a release."""

    model_type: Literal["moshi"]
    num_codebooks: Annotated[int, Field(ge=1, le=255)]
    audio_vocab_size: Integer
    depth_decoder_config: DepthLayers

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        depth = self.depth_decoder_config
        num_steps = self.num_codebooks
        if depth.num_codebooks not in (None, num_steps):
            raise InvalidRequest("depth_decoder_config.num_codebooks", str(num_steps), depth.num_codebooks)
        if depth.sliding_window < num_steps:
            expected = f"at least the {num_steps} steps of a frame"
            raise InvalidRequest("depth_decoder_config.sliding_window", expected, depth.sliding_window)
        return self


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including Mimi."""
    config = Config.read(contents.config)
    vocab = vocabulary(config)
    check_tokenizer(contents.tokenizer, vocab.num_text_ids)
    # text is sampled from `depth.first_head`
    record = {
        **config.record,
        "max_position_embeddings": vocab.max_model_len,
        **common_record(NAME, vocab, vocab.vocab_size, contents),
    }
    codec = codec_network(
        contents.config, "audio_encoder_config", "audio_encoder.", vocab.num_codebooks, vocab.codebook_size
    )
    parts = backbone_plan(config, BACKBONE) | depth_plan(vocab.depth) | table_plan(config.hidden_size, vocab)
    return Converted(record, parts, (), networks=(codec,))


def vocabulary(config: Config) -> MoshiVocabulary:
    """Return the vocabulary of a release."""
    depth = config.depth_decoder_config
    num_codebooks = config.num_codebooks
    return MoshiVocabulary(
        num_text_ids=config.vocab_size,
        num_codebooks=num_codebooks,
        codebook_size=config.audio_vocab_size,
        delays=(0, *[1] * (num_codebooks - 1)),
        depth=DepthSpec(
            hidden=depth.hidden_size,
            intermediate=depth.ffn_dim // 2,
            num_layers=depth.num_hidden_layers,
            num_heads=depth.num_attention_heads,
            num_kv_heads=depth.num_attention_heads,
            head_dim=depth.hidden_size // depth.num_attention_heads,
            eps=depth.rms_norm_eps,
            schedule=tuple(range(num_codebooks)),
        ),
    )


def table_plan(width: int, vocab: MoshiVocabulary) -> Plan:
    """Return the plan of the embeddings and heads, given the width of the backbone."""
    text = vocab.num_text_ids
    size = vocab.codebook_size
    depth = vocab.depth
    steps = range(vocab.num_codebooks)
    tables = {EMBEDDINGS: (text + 1, width)}
    tables |= {f"embed_tokens.{k}.weight": (size + 1, width) for k in range(vocab.num_tables)}
    depth_tables = {f"{DEPTH}text_embed_tokens.weight": (text + 1, depth.hidden)}
    depth_tables |= {f"{DEPTH}embed_tokens.{k}.weight": (size + 1, depth.hidden) for k in steps[:-1]}

    def table(stored: Tensor, *codes: Tensor) -> Tensor:
        """Return the embeddings of text, initial text, our own two ids, and all codes, [V, H]."""
        return torch.cat([stored, stored.new_zeros(2, width), *codes])

    def depth_table(stored: Tensor, *codes: Tensor) -> Tensor:
        """Return the embeddings of the ids that the depth transformer reads, without initial ids."""
        return torch.cat([stored[:text], *(rows[:size] for rows in codes)])

    return {
        **merged("model.embed_tokens.weight", table, tables),
        "decoder.lm_head.weight": Part("depth.first_head", (text, width)),
        **merged("depth.embed", depth_table, depth_tables),
        f"{DEPTH}input_projections.weight": Part("depth.project.weight", (len(steps), depth.hidden, width), by_step),
        f"{DEPTH}lm_heads.weight": Part("depth.heads", (len(steps), size, depth.hidden)),
    }


def by_step(stored: Tensor) -> Tensor:
    """Return the weights of all steps, one after the other: [K, out, in] -> [K * out, in]."""
    return stored.flatten(0, 1)


def depth_plan(depth: DepthSpec) -> Plan:
    """Return the plan of the depth transformer's layers."""
    parts: Plan = {}
    steps = depth.num_sets
    hidden = depth.hidden
    inner = depth.intermediate
    square = (steps, hidden, hidden)

    def fused(*stored: Tensor) -> Tensor:
        """Return queries, keys and values of the first step, then those of the second, and so on."""
        return by_step(torch.cat(stored, 1))

    for layer in range(depth.num_layers):
        stored = f"{DEPTH}layers.{layer}"
        ours = f"depth.layers.{layer}"
        sources = dict.fromkeys((f"{stored}.self_attn.{letter}_proj.linear.weight" for letter in "qkv"), square)
        parts |= merged(f"{ours}.qkv_proj.weight", fused, sources)
        parts[f"{stored}.self_attn.o_proj.linear.weight"] = Part(f"{ours}.o_proj.weight", square, by_step)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            parts[f"{stored}.{norm}.weight"] = Part(f"{ours}.{norm}.weight", (hidden,))
        parts[f"{stored}.mlp.fc1.weight"] = of_each_step(ours, "gate_up_proj", (steps, 2 * inner, hidden))
        parts[f"{stored}.mlp.fc2.weight"] = of_each_step(ours, "down_proj", (steps, hidden, inner))
    return parts


def of_each_step(layer: str, name: str, shape: tuple[int, int, int]) -> Part:
    """Return the part that splits the weights of all steps, [K, out, in], into a tensor for each step."""

    def part(step: int, also: tuple[Part, ...] = ()) -> Part:
        return Part(f"{layer}.sets.{step}.{name}.weight", shape, lambda stored: stored[step], also=also)

    return part(0, tuple(map(part, range(1, shape[0]))))
