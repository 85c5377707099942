"""Conversion of the CSM release in transformers format, including its copy of Mimi.

https://huggingface.co/sesame/csm-1b also contains the same weights in Sesame's own format, which uses torchtune names
and lacks Mimi. `--model` must therefore be the index of the files in transformers format,
`transformers.safetensors.index.json`.
"""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor
from transformers import CsmConfig, CsmDepthDecoderConfig

from stretto.errors import CheckpointError
from stretto.families.csm.family import CsmVocabulary
from stretto.family.conversion import AUDIO, Contents, Converted, Release, common_record, merged, prefixed
from stretto.family.layers import LlamaLayers, depth_spec, layers_plan
from stretto.family.sections import Integer, NumCodebooks, Section, Size
from stretto.weights.loading import Part, Plan, Shape

CODEC = "codec_model."
GENERATION = AUDIO | prefixed("depth_decoder_", "depth")
EMBEDDINGS = "embed_text_tokens.weight"
CODES = "depth_decoder.model.embed_tokens.weight"
CODES_OF_BACKBONE = "backbone_model.embed_tokens.embed_audio_tokens.weight"  # tied to CODES; files may contain either
PROJECTOR = "depth_decoder.model.inputs_embeds_projector.weight"
HEADS = "depth_decoder.codebooks_head.weight"
BEGIN = "<|begin_of_text|>"
END = "<|end_of_text|>"
MARKS = {EMBEDDINGS: "CSM's language model"}
SESAMES = "codebook0_head.weight"  # https://github.com/SesameAILabs/csm, models.py


class Depth(LlamaLayers):
    """`depth_decoder_config` of config.json: sizes of the depth transformer."""

    defaults = CsmDepthDecoderConfig


class Codec(Section):
    """`codec_config` of config.json; its other fields are defined by transformers' class for Mimi."""

    codebook_size: Size = 2048


class Config(LlamaLayers):
    """config.json of a release: the backbone, and the ids."""

    defaults = CsmConfig
    ids_below = "text_vocab_size"

    model_type: Literal["csm"]
    num_codebooks: NumCodebooks
    vocab_size: Integer
    text_vocab_size: Integer
    pad_token_id: int
    audio_eos_token_id: int
    codebook_eos_token_id: Literal[0]
    depth_decoder_config: Depth
    codec_config: Codec


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint; tables are cut to the codec's codes, because other ids are never read or sampled."""
    if SESAMES in contents.tensors:
        index = "transformers.safetensors.index.json"
        raise CheckpointError(
            f"{release.model}: expected {index} in transformers format, got Sesame's format (tensor {SESAMES})"
        )
    config = Config.read(contents.config)
    ids = contents.tokenizer.ids_of((BEGIN, END), config.text_vocab_size)
    depth = config.depth_decoder_config
    vocab = CsmVocabulary(
        num_text_ids=config.text_vocab_size,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codec_config.codebook_size,
        begin=ids[BEGIN],
        end=ids[END],
        pad=config.pad_token_id,
        end_of_audio=config.audio_eos_token_id,
        num_end_codebooks=config.num_codebooks - 1,
        max_model_len=config.max_position_embeddings,
        depth=depth_spec(depth, depth.rope_parameters),
    )
    record = config.record | common_record("csm", vocab, vocab.layout.vocab_size, contents)
    return Converted(record, plan(config, contents.tensors), (CODEC,))


def plan(config: Config, names: Collection[str]) -> Plan:
    """Return the plan of tensors to write, given the config and the names of the published tensors."""
    depth = config.depth_decoder_config
    width = config.hidden_size
    num_codebooks = config.num_codebooks
    num_codes = config.codec_config.codebook_size
    codes: Shape = (num_codebooks * config.vocab_size, width)
    of_backbone = CODES_OF_BACKBONE if CODES_OF_BACKBONE in names else CODES
    of_depth = CODES if CODES in names else CODES_OF_BACKBONE
    heads: Shape = (num_codebooks - 1, depth.hidden_size, config.vocab_size)
    projector: Shape = (depth.hidden_size, width)

    def table(stored: Tensor) -> Tensor:
        """Return the embeddings of existing codes, [K, C, W]."""
        return stored.unflatten(0, (num_codebooks, -1))[:, :num_codes]

    def with_codes(text: Tensor, codes: Tensor) -> Tensor:
        return torch.cat([text, table(codes).flatten(0, 1)])

    def projected(codes: Tensor, projector: Tensor) -> Tensor:
        """Return the projected embeddings that the depth decoder reads, for all codebooks except the last."""
        seen = table(codes)[:-1].flatten(0, 1)
        return (seen.float() @ projector.float().T).to(codes.dtype)

    text = {EMBEDDINGS: (config.text_vocab_size, width), of_backbone: codes}
    return {
        **merged("model.embed_tokens.weight", with_codes, text),
        "lm_head.weight": Part("depth.first_head", (config.vocab_size, width), lambda stored: stored[:num_codes]),
        **merged("depth.embed", projected, {of_depth: codes, PROJECTOR: projector}),
        PROJECTOR: Part("depth.project.weight", projector),
        HEADS: Part("depth.heads", heads, lambda stored: stored.transpose(1, 2)[:, :num_codes]),
        **layers_plan(config.shapes, "backbone_model."),
        **layers_plan(depth.shapes, "depth_decoder.model.", "depth."),
    }
