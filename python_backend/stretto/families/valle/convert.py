"""Conversion of VALL-E releases, with the names and hyperparameters of ESPnet recipes.

Names follow espnet2/speechlm/{definitions,core_lm/valle,module/transformer,module/valle}.py in
https://github.com/espnet/espnet. Values that are missing from `corelm_conf` in `config.yaml` get the defaults in these
files. `token_list` and `token_bias` are as in OpusLM.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from stretto.codecs.refinement import FOLDER
from stretto.errors import CheckpointError
from stretto.families.opuslm import convert as opuslm
from stretto.families.valle.family import PAD, SOS_EOS, ValleVocabulary
from stretto.families.valle.refinement import EPS, ValleShape
from stretto.family.conversion import (
    Contents,
    Converted,
    Network,
    Release,
    Tokenizer,
    check_folded,
    common_record,
    merged_reader,
)
from stretto.untrusted_files import entry, optional_entry
from stretto.weights.backbones import TOKENS
from stretto.weights.loading import Part, Plan

EMBEDDINGS = "corelm.emb.weight"
HEAD = "corelm.lm_head.weight"
FIRST = "corelm.ar_decoder."
SECOND = "corelm.nar_decoder."
DROPPED = ("criterion.",)
DEFAULTS: dict[str, Any] = {"att_unit": 256, "head": 2, "ar_layer": 4, "nar_layer": 4, "n_ctx": 3000, "qk_norm": False}
VOICE_FRAMES = 150  # default of `speaker_prompt_length`
TASKS = ("bpe_tts", "codec_bpe_tts")
# GPT-2 names of the modules in a block, except query, key and value, which GPT-2 stores in one tensor.
RENAMED = {"attn.out": "attn.c_proj", "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj", "attn_ln": "ln_1", "mlp_ln": "ln_2"}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written: the autoregressive model, and the refinement in a folder for the decoder."""
    if release.keeps_codec:
        raise CheckpointError("--codec: required, because VALL-E's file contains no copy of its codec")
    numbers = network_numbers(contents.config)
    known = vocabulary(contents.config, contents.tokenizer)
    record = {
        "architectures": ["StrettoValleForCausalLM"],
        "model_type": "gpt2",
        **dict.fromkeys(TOKENS),
        "hidden_size": numbers["att_unit"],
        "num_hidden_layers": numbers["ar_layer"],
        "num_attention_heads": numbers["head"],
        "max_position_embeddings": numbers["n_ctx"],
        "activation_function": "gelu",
        "layer_norm_epsilon": EPS,
        **common_record("valle", known, known.layout.vocab_size, contents),
    }
    folded = folded_shapes(numbers)
    check_folded(contents.tensors, folded)
    shape = refinement_shape(numbers, known)
    network = Network(FOLDER, asdict(shape), refinement_plan(shape, known))
    return Converted(record, autoregressive_plan(numbers, known, contents.tensors), DROPPED, tuple(folded), (network,))


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype used in training, found as for OpusLM."""
    return opuslm.trained_dtype(config)


def notes(config: Mapping[str, Any], embeddings: Tensor, family: str) -> list[str]:
    """Return a remark on reply latency."""
    return ["audio starts only after the whole reply, because its other codebooks are filled in afterwards"]


def network_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters in `corelm_conf`; raise CheckpointError for a different or unsupported model."""
    if config.get("corelm") != "valle":
        raise CheckpointError(f"config.yaml: corelm: expected valle, got {config.get('corelm')!r}")
    given = optional_entry(config, "corelm_conf") or {}
    numbers = DEFAULTS | {name: given[name] for name in DEFAULTS if name in given}
    if numbers["qk_norm"]:
        raise CheckpointError("config.yaml: corelm_conf.qk_norm: expected false, got true")
    for name in ("att_unit", "head", "ar_layer", "nar_layer", "n_ctx"):
        if type(numbers[name]) is not int or numbers[name] < 1:
            expected = f"a whole number >= 1, got {numbers[name]!r}"
            raise CheckpointError(f"config.yaml: corelm_conf.{name}: expected {expected}")
    if numbers["att_unit"] % numbers["head"]:
        expected = f"a multiple of head, {numbers['head']}"
        raise CheckpointError(f"config.yaml: corelm_conf.att_unit: expected {expected}, got {numbers['att_unit']}")
    return numbers


def vocabulary(config: Mapping[str, Any], tokenizer: Tokenizer) -> ValleVocabulary:
    """Return the vocabulary defined by `token_list` and `token_bias`.

    Raises:
        CheckpointError: If `token_list` or `token_bias` contradicts the family's assumptions.
    """
    names = entry(config, "token_list")
    num_codebooks = entry(config, "codec_token_in_use")
    codec = opuslm.span(config, "codec")
    text = opuslm.span(config, "text_bpe")
    if type(num_codebooks) is not int or num_codebooks < 2 or len(codec) % num_codebooks:
        expected = f"a number of codebooks >= 2 that divides {len(codec)} codes"
        raise CheckpointError(f"config.yaml: codec_token_in_use: expected {expected}, got {num_codebooks!r}")
    if len(text) < tokenizer.size:
        expected = f"the tokenizer {config.get('subword_model')} with at most {len(text)} tokens"
        raise CheckpointError(f"{tokenizer.folder}: expected {expected}, got {tokenizer.size} tokens")
    opuslm.check_tokens(names[text.start : text.stop], tokenizer, config.get("subword_model"))
    opuslm.check_ids(names, {"<pad>": PAD, "<sos/eos>": SOS_EOS})
    voice_frames = optional_entry(config, "speaker_prompt_length") or VOICE_FRAMES
    return ValleVocabulary(
        vocab_size=len(names),
        text=(text.start, text.stop),
        codec=codec.start,
        num_codebooks=num_codebooks,
        codebook_size=len(codec) // num_codebooks,
        text_marker=_token(names, "<text_bpe_start/end>"),
        voice_marker=_token(names, "<spk_start/end>"),
        codec_marker=_token(names, "<codec_start/end>"),
        task=_token(names, *(f"<{task}_task>" for task in TASKS)),
        voice_frames=voice_frames,
        max_model_len=network_numbers(config)["n_ctx"],
    )


def _token(names: list[str], *spellings: str) -> int:
    """Return the id of the first of these spellings that exists as a token."""
    for spelling in spellings:
        if spelling in names:
            return names.index(spelling)
    raise CheckpointError(f"config.yaml: token_list: missing {spellings[0]}")


def autoregressive_plan(numbers: Mapping[str, Any], known: ValleVocabulary, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the plan for the autoregressive model's tensors: GPT-2, with transposed matrices.

    The head covers only the ids that are sampled.

    Args:
        numbers: Hyperparameters.
        known: Vocabulary.
        tensors: Published tensors by name.
    """
    width = numbers["att_unit"]
    other = merged_reader(tensors, folded_shapes(numbers))

    def as_one(attention: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        def weights(query: Tensor) -> Tensor:
            return torch.cat([query, *(other(f"{attention}{name}.weight", query) for name in ("key", "value"))]).T

        def biases(query: Tensor) -> Tensor:  # keys have none
            return torch.cat([query, torch.zeros_like(query), other(f"{attention}value.bias", query)])

        return weights, biases

    parts = {
        EMBEDDINGS: Part("transformer.wte.weight", (known.vocab_size, width), with_zero_row),
        HEAD: Part("audio_head.weight", (known.vocab_size, width), lambda head: _first_head(head, known)),
        f"{FIRST}pos_emb.weight": Part("transformer.wpe.weight", (numbers["n_ctx"], width)),
        **_vectors(f"{FIRST}ln", "transformer.ln_f", width),
    }
    sizes = {"attn.out": (width, width), "mlp.0": (4 * width, width), "mlp.2": (width, 4 * width)}
    for layer in range(numbers["ar_layer"]):
        old = f"{FIRST}blocks.{layer}."
        new = f"transformer.h.{layer}."
        weights, biases = as_one(f"{old}attn.")
        parts[f"{old}attn.query.weight"] = Part(f"{new}attn.c_attn.weight", (width, width), weights)
        parts[f"{old}attn.query.bias"] = Part(f"{new}attn.c_attn.bias", (width,), biases)
        for name, size in sizes.items():
            parts[f"{old}{name}.weight"] = Part(f"{new}{RENAMED[name]}.weight", size, lambda matrix: matrix.T)
            parts[f"{old}{name}.bias"] = Part(f"{new}{RENAMED[name]}.bias", size[:1])
        for name in ("attn_ln", "mlp_ln"):
            parts |= _vectors(f"{old}{name}", f"{new}{RENAMED[name]}", width)
    return parts


def folded_shapes(numbers: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Map the names of the tensors that are merged into query tensors to their shapes."""
    width = numbers["att_unit"]
    shapes: dict[str, tuple[int, ...]] = {
        "key.weight": (width, width),
        "value.weight": (width, width),
        "value.bias": (width,),
    }
    layers = range(numbers["ar_layer"])
    return {f"{FIRST}blocks.{layer}.attn.{name}": shape for layer in layers for name, shape in shapes.items()}


def _vectors(old: str, new: str, width: int) -> Plan:
    """Return the plan for a norm's weight and bias, which renames `old` to `new`."""
    return {f"{old}.{kind}": Part(f"{new}.{kind}", (width,)) for kind in ("weight", "bias")}


def with_zero_row(table: Tensor) -> Tensor:
    """Append a zero row to an embedding table, for the id of an empty stream."""
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def _first_head(head: Tensor, known: ValleVocabulary) -> Tensor:
    """Return the head rows for the first codebook and for the end id."""
    return torch.cat([head[known.codec : known.codec + known.codebook_size], head[SOS_EOS : SOS_EOS + 1]])


def refinement_shape(numbers: Mapping[str, Any], known: ValleVocabulary) -> ValleShape:
    """Return the hyperparameters of the non-autoregressive model."""
    return ValleShape(
        width=numbers["att_unit"],
        num_heads=numbers["head"],
        num_layers=numbers["nar_layer"],
        max_rows=numbers["n_ctx"],
        num_ids=known.layout.vocab_size,
        num_codebooks=known.num_codebooks,
        codebook_size=known.codebook_size,
        codes=known.codec,
        end=SOS_EOS,
    )


def refinement_plan(shape: ValleShape, known: ValleVocabulary) -> Plan:
    """Return the plan for the non-autoregressive model's tensors and the shared tables; names are unchanged."""
    width = shape.width
    first = known.codec + known.codebook_size
    last = known.codec + known.num_codebooks * known.codebook_size
    square = (width, width)
    inner = (4 * width, width)
    sizes: dict[str, tuple[int, ...]] = {
        "pos_emb.weight": (shape.max_rows, width),
        "level_emb.weight": (shape.num_codebooks - 1, width),
        "ln.weight.weight": square,
        "ln.bias.weight": square,
    }
    block: dict[str, tuple[int, ...]] = {
        **{f"attn.{name}.weight": square for name in ("query", "key", "value", "out")},
        **{f"attn.{name}.bias": (width,) for name in ("query", "value", "out")},
        **{f"{name}.{kind}.weight": square for name in ("attn_ln", "mlp_ln") for kind in ("weight", "bias")},
        "mlp.0.weight": inner,
        "mlp.0.bias": inner[:1],
        "mlp.2.weight": inner[::-1],
        "mlp.2.bias": (width,),
    }
    sizes |= {f"blocks.{layer}.{name}": size for layer in range(shape.num_layers) for name, size in block.items()}
    return {
        EMBEDDINGS: Part("emb.weight", (known.vocab_size, width), with_zero_row),
        HEAD: Part("head.weight", (known.vocab_size, width), lambda head: head[first:last]),
        **{f"{SECOND}{name}": Part(name, size) for name, size in sizes.items()},
    }
