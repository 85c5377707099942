"""Conversion of MOSS-TTS-Nano releases (`model_type` moss_tts_nano), as published by OpenMOSS.

A release has `config.json`, the weights in `pytorch_model.bin`, and a SentencePiece tokenizer. The codec,
MOSS-Audio-Tokenizer-Nano, is in another repository. The tables of text and of all codebooks become one. The heads are
copies of the tables, and may be missing. Here, the head of text has only the rows of the slot and the end of audio.
Rotations pair neighbouring features: queries and keys are reordered, so that feature i is paired with i + D / 2.
"""

from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from stretto.family.conversion import Contents, Converted, Release, common_record, concatenated, merged
from stretto.family.sections import Integer, NumCodebooks, NumLayers, Size
from stretto.weights.loading import Part, Plan
from stretto_moss.moss_tts.convert import MarkedIds
from stretto_moss.moss_tts_local.convert import (
    COPIES,
    LOCAL,
    TEXT_HEAD,
    Gpt2Layers,
    check_codebook_sizes,
    check_copies,
    gpt2_plan,
)
from stretto_moss.moss_tts_local.convert import IDS as IDS
from stretto_moss.moss_tts_nano.family import MAX_MODEL_LEN, NanoVocabulary

IS_BARE = True  # the tokenizer is a SentencePiece model
BACKBONE = "transformer."
EMBEDDINGS = f"{BACKBONE}wte.weight"
MARKS = {f"{BACKBONE}h.0.attn.c_attn.weight": "MOSS-TTS-Nano"}
UNUSED = (f"{LOCAL}wte.weight",)  # the authors' class ignores it


class Gpt2Backbone(Gpt2Layers):
    """Section `gpt2_config`: the backbone. The depth transformer has the same layers."""

    vocab_size: Integer
    n_positions: Integer = 1024

    @property
    def record(self) -> dict[str, Any]:
        return {
            "architectures": ["StrettoMossNanoForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.n_embd,
            "intermediate_size": self.n_inner or 4 * self.n_embd,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head,
            "head_dim": self.n_embd // self.n_head,
            "hidden_act": self.activation_function,
            "max_position_embeddings": self.n_positions,
            "rms_norm_eps": self.layer_norm_epsilon,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_base},
            "attention_bias": True,
            "mlp_bias": True,
        }


class Config(MarkedIds):
    """config.json of a release."""

    ids_below = "gpt2_config.vocab_size"

    model_type: Literal["moss_tts_nano"]
    model_architecture: Literal["global_local_transformer"] = "global_local_transformer"
    gpt2_config: Gpt2Backbone
    n_vq: NumCodebooks = 8
    audio_vocab_size: Size = 1024
    audio_codebook_sizes: list[Size] | None = None
    local_transformer_layers: NumLayers = 4
    audio_start_token_id: int = 151652
    audio_end_token_id: int = 151653
    audio_assistant_slot_token_id: int = 151656

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        check_codebook_sizes(self.audio_codebook_sizes, self.n_vq, self.audio_vocab_size)
        return self


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    config = Config.read(contents.config)
    vocab = vocabulary(config)
    contents.tokenizer.ids_of((), vocab.num_text_ids)
    check_copies(contents.tensors, {TEXT_HEAD: EMBEDDINGS})
    check_copies(contents.tensors, {f"{COPIES}{k}.weight": f"audio_embeddings.{k}.weight" for k in range(config.n_vq)})
    record = {
        **config.gpt2_config.record,
        **common_record("moss_tts_nano", vocab, vocab.layout.vocab_size, contents),
    }
    return Converted(record, plan(config, vocab), (TEXT_HEAD, COPIES, *UNUSED))


def vocabulary(config: Config) -> NanoVocabulary:
    """Return the vocabulary of a release."""
    layers = config.gpt2_config
    return NanoVocabulary(
        num_text_ids=layers.vocab_size,
        num_codebooks=config.n_vq,
        codebook_size=config.audio_vocab_size,
        **config.ids(IDS),
        max_model_len=min(MAX_MODEL_LEN, layers.n_positions),
        depth=layers.depth(config.local_transformer_layers, num_first=1),
    )


def plan(config: Config, vocab: NanoVocabulary) -> Plan:
    """Return the tensors to write, by published name."""
    layers = config.gpt2_config
    width = layers.n_embd
    text = (vocab.num_text_ids, width)
    tables = dict.fromkeys(
        (f"audio_embeddings.{k}.weight" for k in range(vocab.num_codebooks)), (vocab.codebook_size, width)
    )
    first, second, *others = tables

    def decisions(text: Tensor) -> Tensor:
        return text[[vocab.slot, vocab.audio_end]]

    def rows_of_slot_and_codes(*tensors: Tensor) -> Tensor:
        *codes, text = tensors
        return torch.cat([text[vocab.slot : vocab.slot + 1], *codes])

    def heads(second: Tensor, first: Tensor, *others: Tensor) -> Tensor:
        return torch.stack([first, second, *others])

    first_head = Part("depth.first_head", text, decisions)
    parts: Plan = {
        EMBEDDINGS: Part("model.embed_tokens.weight", text, concatenated, also=(first_head,), others=tables),
        **merged("depth.embed", rows_of_slot_and_codes, dict(list(tables.items())[:-1]) | {EMBEDDINGS: text}),
        **merged("depth.heads", heads, {name: tables[name] for name in (second, first, *others)}),
    }
    parts |= gpt2_plan(layers.depth(layers.n_layer, num_first=1), BACKBONE, "model.", "self_attn.")
    return parts | gpt2_plan(vocab.depth, LOCAL, "depth.")
