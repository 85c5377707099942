"""Conversion of the CSM release in transformers format, including its copy of Mimi.

The release is https://huggingface.co/sesame/csm-1b. It also contains the same weights in Sesame's own format, which
uses torchtune names and lacks Mimi. `--model` must therefore be the index of the files in transformers format,
`transformers.safetensors.index.json`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CsmConfig, CsmForConditionalGeneration

from stretto.errors import CheckpointError
from stretto.families.csm.family import CsmVocabulary
from stretto.family.conversion import (
    AUDIO,
    Contents,
    Converted,
    Release,
    Tokenizer,
    common_record,
    merged,
    prefixed,
)
from stretto.family.layers import depth_spec, layers_plan
from stretto.untrusted_files import check_value
from stretto.weights.backbones import LLAMA_NUMBERS, check_heads, check_plain_layers, read_numbers
from stretto.weights.loading import Part, Plan, shapes_of

CODEC = "codec_model."
GENERATION = AUDIO | prefixed("depth_decoder_", "depth")
EMBEDDINGS = "embed_text_tokens.weight"
CODES = "depth_decoder.model.embed_tokens.weight"
CODES_OF_BACKBONE = "backbone_model.embed_tokens.embed_audio_tokens.weight"  # tied to CODES; files may contain either
PROJECTOR = "depth_decoder.model.inputs_embeds_projector.weight"
HEADS = "depth_decoder.codebooks_head.weight"
DEPTH = "depth_decoder.model."
BACKBONE = "backbone_model."
BEGIN = "<|begin_of_text|>"
END = "<|end_of_text|>"
MARKS = {EMBEDDINGS: "CSM's language model"}
SESAMES = "codebook0_head.weight"  # https://github.com/SesameAILabs/csm, models.py


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written.

    Tables are cut to the rows of the codec's codes, because other ids are never read or sampled.
    """
    if SESAMES in contents.tensors:
        index = "transformers.safetensors.index.json"
        raise CheckpointError(
            f"{release.model}: expected {index} in transformers format, got Sesame's format (tensor {SESAMES})"
        )
    config = read_config(contents.config)
    vocab = vocabulary(config, contents.tokenizer)
    record = {
        "architectures": ["StrettoLlamaForCausalLM"],
        "model_type": "llama",
        **{name: getattr(config, name) for name in LLAMA_NUMBERS},
        **common_record("csm", vocab, vocab.layout.vocab_size, contents),
    }
    return Converted(record, plan(config, vocab, contents.tensors), (CODEC, CODES_OF_BACKBONE))


def read_config(record: Mapping[str, Any]) -> Any:
    """Parse config.json as a CsmConfig; raise CheckpointError if it belongs to a different or unsupported model."""
    # Recent versions of transformers repeat `tie_codebooks_embeddings` in this key. Earlier ones accept only False.
    config = read_numbers(CsmConfig, {name: value for name, value in record.items() if name != "tie_word_embeddings"})
    check_heads(config)
    depth = config.depth_decoder_config
    check_plain_layers(config)
    check_plain_layers(depth, "depth_decoder_config.")
    check_value("codebook_eos_token_id", config.codebook_eos_token_id, 0)
    return config


def vocabulary(config: Any, tokenizer: Tokenizer) -> CsmVocabulary:
    """Return the vocabulary: tokenizer ids, followed by the ids of Mimi's codebooks."""
    ids = tokenizer.ids_of((BEGIN, END), config.text_vocab_size)
    depth = config.depth_decoder_config
    return CsmVocabulary(
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


def plan(config: Any, vocab: CsmVocabulary, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the plan of tensors to write; layers keep their names except for the prefix.

    Args:
        config: CsmConfig of the release.
        vocab: Vocabulary.
        tensors: Published tensors by name.
    """
    shapes = shapes_of(CsmForConditionalGeneration, config)
    of_backbone = CODES_OF_BACKBONE if CODES_OF_BACKBONE in tensors else CODES
    of_depth = CODES if CODES in tensors else CODES_OF_BACKBONE
    size = vocab.codebook_size

    def table(stored: Tensor) -> Tensor:
        """Return the embeddings of existing codes, [K, C, W]."""
        return stored.view(vocab.num_codebooks, config.vocab_size, config.hidden_size)[:, :size]

    def with_codes(text: Tensor, codes: Tensor) -> Tensor:
        return torch.cat([text, table(codes).flatten(0, 1)])

    def projected(codes: Tensor, projector: Tensor) -> Tensor:
        """Return the projected embeddings that the depth decoder reads, for all codebooks except the last."""
        seen = table(codes)[:-1].flatten(0, 1)
        return (seen.float() @ projector.float().T).to(codes.dtype)

    return {
        **merged("model.embed_tokens.weight", with_codes, {name: shapes[name] for name in (EMBEDDINGS, of_backbone)}),
        "lm_head.weight": Part("depth.first_head", shapes["lm_head.weight"], lambda stored: stored[:size]),
        **merged("depth.embed", projected, {name: shapes[name] for name in (of_depth, PROJECTOR)}),
        PROJECTOR: Part("depth.project.weight", shapes[PROJECTOR]),
        HEADS: Part("depth.heads", shapes[HEADS], lambda stored: stored.transpose(1, 2)[:, :size]),
        **layers_plan(shapes, BACKBONE),
        **layers_plan(shapes, DEPTH, "depth."),
    }
