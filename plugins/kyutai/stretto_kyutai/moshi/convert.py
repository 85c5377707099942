"""Conversion of Moshi releases in PyTorch format: published names and shapes, and the Mimi file.

It supports moshika-pytorch-bf16 and moshiko-pytorch-bf16 at https://huggingface.co/kyutai, whose first versions have no
config.json. Releases in transformers format (`kmhf/hf-moshika`) are read by `convert_transformers`; quantized weights
and other kinds of models are rejected.
"""

from collections.abc import Mapping, Sequence
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
    concatenated,
    integer,
    merged,
    stacked,
)
from stretto.family.text import sentencepiece_at
from stretto.untrusted_files import released_file
from stretto.weights.loading import WHOLE, Part, Plan
from stretto_kyutai.kyutai_stt.convert import (
    EPS,
    FIRST_MIMI,
    MIMI_KEY,
    MODEL_KEY,
    SHARED_EXPECTED,
    TOKENIZER_KEY,
    backbone_plan,
    backbone_record,
    check_config,
    check_tokenizer,
    codec_network,
    flat,
    gated_width,
)
from stretto_kyutai.kyutai_stt.convert import located as located
from stretto_kyutai.moshi.family import MAX_DELAY, NAME, FrameVocabulary, MoshiVocabulary

IS_BARE = True  # the tokenizer is a SentencePiece model, and a release may lack config.json
TRANSFORMERS = "stretto_kyutai.moshi.convert_transformers"
TEXT = "text_emb"
DEPTH_TEXT = "depformer_text_emb"
EMBEDDINGS = f"{TEXT}.weight"
RANK = "depformer_low_rank_embeddings"
CODE_FACTOR = "depformer_emb.{}.low_rank.weight"
MARKS = {"depformer_in.0.weight": "a model of Moshi's kind"}
# Contents of config.json for the first releases, which lack this file.
FIRST: dict[str, Any] = {
    MODEL_KEY: WHOLE,
    MIMI_KEY: FIRST_MIMI,
    TOKENIZER_KEY: "tokenizer_spm_32k_3.model",
    "dim": 4096,
    "text_card": 32000,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "num_heads": 32,
    "num_layers": 32,
    "hidden_scale": 4.125,
    "causal": True,
    "context": 3000,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_dim_feedforward": 4224,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_multi_linear": True,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}
DEPTH_EXPECTED: dict[str, tuple[Any, ...]] = {  # `kyutai_tts` shares these
    "lora_name": (None,),
    "extra_heads_num_heads": (0, None),
    "depformer_gating": ("silu",),
    "depformer_pos_emb": ("none",),
    "depformer_layer_scale": (None,),
    "depformer_multi_linear": (True,),
    "depformer_weights_per_step": (True,),
    RANK: (None,),
    "depformer_norm": (None,),
}
EXPECTED = {"model_type": ("moshi", None), **SHARED_EXPECTED, **DEPTH_EXPECTED}  # supported values of config.json


def own_tokenizer(release: Release, tensors: Mapping[str, Tensor]) -> Tokenizer | None:
    """Return the SentencePiece tokenizer of a release without config.json, otherwise None."""
    return None if release.config is not None else first_tokenizer(release)


def first_tokenizer(release: Release) -> Tokenizer:
    """Return the tokenizer from the file name used in the first releases."""
    path = released_file(release.tokenizer, FIRST[TOKENIZER_KEY])
    tokens = sentencepiece_at(path).tokens
    return Tokenizer(path.parent, len(tokens), tokens, files=(path,))


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including Mimi from the release's own file."""
    config = contents.config or FIRST
    check_config(config, EXPECTED)
    return converted(release, contents, config, vocabulary(config), NAME)


def converted(
    release: Release,
    contents: Contents,
    config: Mapping[str, Any],
    vocab: FrameVocabulary,
    family: str,
    rows: Sequence[Tensor] = (),
    repeated: Sequence[int] = (),
    num_steps: int | None = None,
) -> Converted:
    """Return the checkpoint to be written for a release that has Moshi tensors.

    Steps of the depth transformer beyond the codebooks that the model generates are omitted.

    Args:
        rows: Additional embeddings, [n, H] each, for the ids that follow all codebooks.
        repeated: Text ids whose embeddings are copied to the ids from `num_text_ids` on, which are never sampled.
        num_steps: Number of steps of the release's depth transformer; None for `dep_q`.
    """
    check_tokenizer(contents.tokenizer, vocab.num_text_ids)
    # text is sampled from `depth.first_head`
    record = {
        **backbone_record(config),
        "max_position_embeddings": vocab.max_model_len,
        **common_record(family, vocab, vocab.vocab_size, contents),
    }
    steps = vocab.num_codebooks
    stored = num_steps or integer(config, "dep_q")
    layers = [f"depformer.layers.{layer}.gating" for layer in range(vocab.depth.num_layers)]
    unused = range(steps, stored)
    num_sets = 1 + max(schedule(config, stored))
    dropped = [f"{name}.{w}." for w in range(vocab.depth.num_sets, num_sets) for name in ("depformer_in", *layers)]
    dropped += [f"{name}." for step in unused for name in (f"linears.{step}", f"depformer_emb.{step - 1}")]
    codec = codec_network(config, release.folder, vocab.num_codebooks, vocab.codebook_size)
    parts = plan(config, vocab, contents.tensors, rows, repeated) | depth_plan(vocab.depth, num_sets)
    return Converted(record, parts, tuple(dropped), networks=(codec,))


def vocabulary(config: Mapping[str, Any]) -> MoshiVocabulary:
    """Return the vocabulary of a release."""
    num_codebooks = integer(config, "dep_q")
    delays = config.get("delays")
    if integer(config, "n_q") != 2 * num_codebooks:
        expected = f"{2 * num_codebooks}, those of the model and as many of the user"
        raise CheckpointError(f"config.json: n_q: expected {expected}, got {config['n_q']}")
    of_model = delays[1 : 1 + num_codebooks] if isinstance(delays, list) else []
    is_valid = of_model[:1] == [0] and all(isinstance(delay, int) and 0 <= delay <= MAX_DELAY for delay in of_model)
    if not is_valid or delays != [0, *of_model, *of_model]:
        expected = f"0, then twice {num_codebooks} delays from 0 to {MAX_DELAY}, the first of them 0"
        raise CheckpointError(f"config.json: delays: expected {expected}, got {shown(delays)}")
    return MoshiVocabulary(
        num_text_ids=integer(config, "text_card"),
        num_codebooks=num_codebooks,
        codebook_size=integer(config, "card"),
        delays=tuple(of_model),
        depth=depth_spec(config, schedule(config, num_codebooks)),
    )


def schedule(config: Mapping[str, Any], num_steps: int) -> list[int]:
    """Return the index of the weight set for each step of a release's depth transformer."""
    sets = config.get("depformer_weights_per_step_schedule")
    if sets is None:
        sets = list(range(num_steps))
    is_valid = isinstance(sets, list) and len(sets) == num_steps and all(isinstance(w, int) for w in sets)
    if not is_valid or sorted({*sets}) != list(range(len({*sets}))):
        expected = f"{num_steps} numbers of sets, from 0 on"
        raise CheckpointError(
            f"config.json: depformer_weights_per_step_schedule: expected {expected}, got {shown(sets)}"
        )
    return list(sets)


def depth_spec(config: Mapping[str, Any], steps: Sequence[int]) -> DepthSpec:
    """Return the hyperparameters of the depth transformer, given the index of the weight set for each step."""
    width = integer(config, "depformer_dim")
    heads = integer(config, "depformer_num_heads")
    if width % heads or (width // heads) % 2:
        expected = "heads of an even width"
        raise CheckpointError(f"config.json: depformer_dim: expected {expected}, got {width} for {heads} heads")
    return DepthSpec(
        hidden=width,
        intermediate=gated_width(width, integer(config, "depformer_dim_feedforward")),
        num_layers=integer(config, "depformer_num_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        eps=EPS,
        schedule=tuple(steps),
    )


def depth_rank(config: Mapping[str, Any], depth: DepthSpec) -> int:
    """Return the width in which a release stores the embeddings of the depth transformer."""
    return integer(config, RANK) if config.get(RANK) else depth.hidden


def text_factors(config: Mapping[str, Any], table: str) -> tuple[str, ...]:
    """Return the names of the matrices by which a release multiplies an embedding table of text.

    With two text streams, each has its own matrix. Otherwise there is at most one matrix.
    """
    if config.get("demux_second_stream"):
        return f"{table}.out1.weight", f"{table}.out2.weight"
    return (f"{table}.low_rank.weight",) if config.get(RANK) and table == DEPTH_TEXT else ()


def plan(
    config: Mapping[str, Any],
    vocab: FrameVocabulary,
    tensors: Mapping[str, Tensor],
    rows: Sequence[Tensor] = (),
    repeated: Sequence[int] = (),
) -> Plan:
    """Return the tensors to write, by published name; for `rows` and `repeated`, see `converted`."""
    width = integer(config, "dim")
    text = vocab.num_text_ids
    size = vocab.codebook_size
    depth = vocab.depth
    rank = depth_rank(config, depth)
    steps = range(vocab.num_codebooks)
    factors = dict.fromkeys(text_factors(config, TEXT), (width, width))
    tables = {f"emb.{k}.weight": (size + 1, width) for k in range(integer(config, "n_q"))}
    depth_factors = dict.fromkeys(text_factors(config, DEPTH_TEXT), (depth.hidden, rank))
    depth_tables = {f"depformer_emb.{k}.weight": (size + 1, rank) for k in steps[:-1]}
    code_factors = {CODE_FACTOR.format(k): (depth.hidden, rank) for k in steps[:-1] if config.get(RANK)}

    def product(stored: Tensor, factor: Tensor) -> Tensor:
        return stored.float() @ factor.float().T

    def texts(stored: Tensor) -> Tensor:
        """Return the embeddings of the text ids, then those of `repeated`."""
        return torch.cat([stored[:text], *(stored[token : token + 1] for token in repeated)])

    def table(stored: Tensor, *others: Tensor) -> Tensor:
        """Return the embeddings of text, initial text, our own two ids, all codes, `rows` and second text, [V, H]."""
        main, *second = [product(stored, factor) for factor in others[: len(factors)]] or [stored]
        codes = with_initial_ids_of_others(list(others[len(factors) :]))
        own_rows = [main[text:], main.new_zeros(2, width)]
        added = [*(row.to(main) for row in rows), *(table_of_text[:text] for table_of_text in second)]
        return torch.cat([texts(main), *own_rows, *codes, *added])

    def with_initial_ids_of_others(codes: list[Tensor]) -> list[Tensor]:
        """Add the initial embeddings of codebooks that are not generated to those of codebooks with equal delays.

        The model reads both in the same rows: those before the delay has passed. Their sum therefore replaces both.
        """
        for k in range(vocab.num_tables, len(codes)):
            same = vocab.delays.index(config["delays"][1 + k])
            codes[same] = torch.cat([codes[same][:size], codes[same][size:] + codes[k][size:]])
        return codes[: vocab.num_tables]

    def head(stored: Tensor) -> Tensor:
        """Return the head of text, with zeros for ids that are never sampled."""
        return torch.cat([stored, stored.new_zeros(text + len(repeated) - len(stored), width)])

    def depth_table(stored: Tensor, *others: Tensor) -> Tensor:
        """Return the embeddings of the ids that the depth transformer reads, without initial ids."""
        main, *second = [product(stored, factor) for factor in others[: len(depth_factors)]] or [stored]
        codes = [rows[:size] for rows in others[len(depth_factors) :][: len(depth_tables)]]
        if code_factors:
            codes = [product(*pair) for pair in zip(codes, others[-len(codes) :], strict=True)]
        return torch.cat([texts(main), *codes, *(table_of_text[:text] for table_of_text in second)])

    depth_text = {f"{DEPTH_TEXT}.weight": (text + 1, rank)}
    projections = {f"depformer_in.{number}.weight": (depth.hidden, width) for number in range(depth.num_sets)}
    return {
        **backbone_plan(config, tensors),
        **merged("model.embed_tokens.weight", table, {EMBEDDINGS: (text + 1, width)} | factors | tables),
        "text_linear.weight": Part("depth.first_head", (vocab.num_head_ids, width), head),
        **merged("depth.embed", depth_table, depth_text | depth_factors | depth_tables | code_factors),
        **merged("depth.project.weight", concatenated, projections),
        **merged("depth.heads", stacked, {f"linears.{k}.weight": (size, depth.hidden) for k in steps}),
    }


def depth_plan(depth: DepthSpec, num_stored: int) -> Plan:
    """Return the tensors of the depth transformer's layers, by published name.

    Args:
        num_stored: Number of sets of weights in the release, of which those of unused steps are left out.
    """
    parts: Plan = {}
    sets = depth.num_sets
    hidden = depth.hidden
    inner = depth.intermediate

    def of_sets(stored: Tensor) -> Tensor:
        """Return the weights of the sets in use, which come first."""
        return stored[: len(stored) // num_stored * sets]

    for layer in range(depth.num_layers):
        stored = f"depformer.layers.{layer}"
        ours = f"depth.layers.{layer}"
        parts[f"{stored}.self_attn.in_proj_weight"] = Part(
            f"{ours}.qkv_proj.weight", (3 * num_stored * hidden, hidden), of_sets
        )
        parts[f"{stored}.self_attn.out_proj.weight"] = Part(
            f"{ours}.o_proj.weight", (num_stored * hidden, hidden), of_sets
        )
        parts[f"{stored}.norm1.alpha"] = Part(f"{ours}.input_layernorm.weight", (1, 1, hidden), flat)
        parts[f"{stored}.norm2.alpha"] = Part(f"{ours}.post_attention_layernorm.weight", (1, 1, hidden), flat)
        for w in range(sets):
            gating = f"{stored}.gating.{w}"
            mine = f"{ours}.sets.{w}"
            parts[f"{gating}.linear_in.weight"] = Part(f"{mine}.gate_up_proj.weight", (2 * inner, hidden))
            parts[f"{gating}.linear_out.weight"] = Part(f"{mine}.down_proj.weight", (hidden, inner))
    return parts
