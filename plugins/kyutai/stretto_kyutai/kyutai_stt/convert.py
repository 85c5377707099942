"""Conversion of Kyutai's speech-to-text releases: published names and shapes, and the Mimi file.

It supports https://huggingface.co/kyutai/stt-1b-en_fr, https://huggingface.co/kyutai/stt-2.6b-en, and the `-candle`
variants, which have pause heads. Releases in transformers format are read by `convert_transformers`. The query and key
weights of each head are permuted, because vLLM and transformers rotate halves of a head, whereas the release rotates
adjacent pairs.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MimiConfig, MimiModel

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import (
    Contents,
    Converted,
    Network,
    Release,
    Tokenizer,
    common_record,
    concatenated,
    integer,
    merged,
    unchanged,
)
from stretto.untrusted_files import check_value, entry, json_object, named_file, read_json
from stretto.weights.loading import WHOLE, Part, Plan, check, open_tensors, shapes_of
from stretto_kyutai.kyutai_stt.family import FRAME_RATE, NAME, PAUSES_S, SttVocabulary

IS_BARE = True  # the tokenizer is a SentencePiece model
TRANSFORMERS = "stretto_kyutai.kyutai_stt.convert_transformers"
# Keys in config.json for names of files; the tokenizer is a SentencePiece model.
MODEL_KEY = "moshi_name"
MIMI_KEY = "mimi_name"
TOKENIZER_KEY = "tokenizer_name"
FIRST_MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"  # name of Mimi's file if config.json has none
EMBEDDINGS = "text_emb.weight"
MARKS = {"emb.31.weight": "Kyutai's speech-to-text model"}
# Supported values in config.json, which other models of the same code base may set differently; shared with `moshi`.
SHARED_EXPECTED: dict[str, tuple[Any, ...]] = {
    "causal": (True,),
    "norm": ("rms_norm_f32",),
    "positional_embedding": ("rope",),
    "gating": ("silu",),
    "layer_scale": (None,),
    "rope_concat": (False, None),
    "kv_repeat": (1, None),
    "cross_attention": (False, None),
    "demux_second_stream": (False, None),
    "quantize": (False, None),
    "lora": (False, None),
    "fuser": (None, {}),
    "conditioners": ({}, None),
}
EXPECTED = {"model_type": ("stt", None), "dep_q": (0,), **SHARED_EXPECTED}
# Rows between a sound and its text, by `audio_delay_seconds`, as in the authors' server; other delays are rounded.
DELAY_ROWS = {0.5: 6, 2.5: 32}
PAUSES = "extra_heads.{}.weight"
EPS = 1e-8
# limits on Mimi's config
MAX_CODEBOOKS = 257
MAX_WIDTH = 1 << 15
MAX_RATIOS = 8
MAX_RATIO = 64


def located(release: Release) -> Release:
    """Return the release with the path of the language model's file, which the release's config.json names."""
    if release.config is None or not release.model.is_dir():
        return release
    config = {MODEL_KEY: WHOLE, **read_json(release.config)}
    return replace(release, model=named_file(release.model, config, MODEL_KEY))


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including Mimi from the release's own file."""
    config = contents.config
    if not config:
        raise CheckpointError("--config: expected the release's config.json, got none")
    check_config(config, EXPECTED)
    check_delays(config)
    vocab = vocabulary(config, contents.tensors)
    check_tokenizer(contents.tokenizer, vocab.num_text_ids)
    record = {
        **backbone_record(config),
        "max_position_embeddings": vocab.max_model_len,
        **common_record(NAME, vocab, vocab.vocab_size, contents, has_head=True),
    }
    parts = plan(config, vocab, contents.tensors)
    codec = codec_network(config, release.folder, vocab.num_codebooks, vocab.codebook_size)
    return Converted(record, parts, (), networks=(codec,))


def check_tokenizer(tokenizer: Tokenizer, num_text_ids: int) -> None:
    """Raise CheckpointError if the tokenizer's size differs from the number of text ids."""
    if tokenizer.size != num_text_ids:
        raise CheckpointError(
            f"{tokenizer.folder}: expected a tokenizer of {num_text_ids} tokens, got {tokenizer.size}"
        )


def backbone_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the backbone fields for the checkpoint's config.json, given the release's config."""
    width = integer(config, "dim")
    heads = integer(config, "num_heads")
    check_width("dim", width, heads)
    num_layers = integer(config, "num_layers")
    numbers = {"hidden_size": width, "intermediate_size": inner_width(config), "num_hidden_layers": num_layers}
    theta = float(entry(config, "max_period"))
    window = integer(config, "context")
    return llama_record({**numbers, "num_attention_heads": heads}, EPS, theta, window)


def llama_record(numbers: Mapping[str, int], eps: float, theta: float, window: int) -> dict[str, Any]:
    """Return the backbone fields for config.json, given `numbers` by the keys of a Llama config."""
    heads = numbers["num_attention_heads"]
    return {
        "architectures": ["StrettoLlamaForCausalLM"],
        "model_type": "llama",
        **numbers,
        "num_key_value_heads": heads,
        "head_dim": numbers["hidden_size"] // heads,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "sliding_window": window,
        "layer_types": ["sliding_attention"] * numbers["num_hidden_layers"],
    }


def check_width(name: str, width: int, heads: int) -> None:
    """Raise CheckpointError, naming the field `name`, unless attention heads have an even width."""
    if width % heads or (width // heads) % 2:
        raise CheckpointError(f"config.json: {name}: expected heads of an even width, got {width} for {heads} heads")


def check_config(config: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise CheckpointError if a field of config.json has an unsupported value."""
    for name, allowed in supported.items():
        check_value(name, config.get(name), *allowed)


def check_delays(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if any stream is delayed."""
    delays = config.get("delays")
    if not isinstance(delays, list) or any(delays) or len(delays) != 1 + integer(config, "n_q"):
        raise CheckpointError(f"config.json: delays: expected {1 + integer(config, 'n_q')} zeros, got {shown(delays)}")


def durations(config: Mapping[str, Any], file: str = "config.json", section: str = "stt_config") -> dict[str, Any]:
    """Return the fields of a vocabulary that depend on the model's delay and on the silence before a recording.

    Args:
        section: Dotted path of the section with both durations; empty for the file itself.
    """
    seconds = {}
    for name in ("audio_delay_seconds", "audio_silence_prefix_seconds"):
        path = f"{section}.{name}" if section else name
        value = entry(config, path, file)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 10:
            raise CheckpointError(f"{file}: {path}: expected seconds in [0, 10], got {shown(value)}")
        seconds[name] = float(value)
    delay_s, prefix_s = seconds.values()
    return {
        "delay_rows": DELAY_ROWS.get(delay_s, round(delay_s * FRAME_RATE)),
        "delay_s": delay_s,
        "prefix_s": prefix_s,
    }


def vocabulary(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SttVocabulary:
    """Return a release's vocabulary. The tensors show whether there are pause heads."""
    num_heads = integer(config, "extra_heads_num_heads") if PAUSES.format(0) in tensors else 0
    if num_heads > len(PAUSES_S):
        raise CheckpointError(f"config.json: extra_heads_num_heads: expected at most {len(PAUSES_S)}, got {num_heads}")
    return SttVocabulary(
        num_text_ids=integer(config, "text_card"),
        num_codebooks=integer(config, "n_q"),
        codebook_size=integer(config, "card"),
        **durations(config),
        num_pauses=num_heads,
        num_pause_classes=integer(config, "extra_heads_dim") if num_heads else 6,
    )


def inner_width(config: Mapping[str, Any]) -> int:
    """Return the width of the feed-forward layers."""
    width = integer(config, "dim")
    scale = entry(config, "hidden_scale")
    if not isinstance(scale, int | float) or not 1 <= scale <= 64:
        raise CheckpointError(f"config.json: hidden_scale: expected a number in [1, 64], got {shown(scale)}")
    return gated_width(width, int(scale * width))


def gated_width(width: int, inner: int) -> int:
    """Return the width of a gated feed-forward layer, given the width of a plain one."""
    return 21 * width // 8 if inner == 4 * width else 2 * inner // 3


def halves(weight: Tensor, heads: int) -> Tensor:
    """Return a query or key weight [H, W], with even rows before odd rows within each head."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def plan(config: Mapping[str, Any], vocab: SttVocabulary, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the tensors to write, by published name."""
    width = integer(config, "dim")
    codes = {f"emb.{k}.weight": (vocab.codebook_size + 1, width) for k in range(vocab.num_codebooks)}

    def table(text: Tensor, *codes: Tensor) -> Tensor:
        """Return the embeddings of text, of our own two ids, and of all codes, [V, H]."""
        return torch.cat([text, text.new_zeros(2, width), *codes])

    def head(text: Tensor) -> Tensor:
        return torch.cat([text, text.new_zeros(vocab.vocab_size - len(text), width)])

    parts = {
        **backbone_plan(config, tensors),
        **merged("model.embed_tokens.weight", table, {EMBEDDINGS: (vocab.num_text_ids + 1, width)} | codes),
        "text_linear.weight": Part("lm_head.weight", (vocab.num_text_ids, width), head),
    }
    if vocab.num_pauses:
        heads = {PAUSES.format(head): (vocab.num_pause_classes, width) for head in range(vocab.num_pauses)}
        parts |= merged("pause_heads.weight", concatenated, heads)
    return parts


def flat(alpha: Tensor) -> Tensor:
    """Flatten a norm's weight, [1, 1, H] -> [H]."""
    return alpha.reshape(-1)


def backbone_plan(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Plan:
    """Return the tensors of the backbone's layers and final norm, by published name."""
    width = integer(config, "dim")
    heads = integer(config, "num_heads")
    inner = inner_width(config)

    def fused(weight: Tensor) -> Tensor:
        queries, keys, values = weight.chunk(3)
        return torch.cat([halves(queries, heads), halves(keys, heads), values])

    parts: Plan = {"out_norm.alpha": Part("model.norm.weight", (1, 1, width), flat)}
    layer_parts: dict[str, tuple[str, tuple[int, ...], Callable[[Tensor], Tensor] | None]] = {
        "self_attn.in_proj_weight": ("self_attn.qkv_proj.weight", (3 * width, width), fused),
        "self_attn.out_proj.weight": ("self_attn.o_proj.weight", (width, width), None),
        "gating.linear_in.weight": ("mlp.gate_up_proj.weight", (2 * inner, width), None),
        "gating.linear_out.weight": ("mlp.down_proj.weight", (width, inner), None),
        "norm1.alpha": ("input_layernorm.weight", (1, 1, width), flat),
        "norm2.alpha": ("post_attention_layernorm.weight", (1, 1, width), flat),
    }
    for layer in range(integer(config, "num_layers")):
        for name, (ours, shape, edit) in layer_parts.items():
            stored = f"transformer.layers.{layer}.{name}"
            if name == "self_attn.in_proj_weight" and stored not in tensors:  # in newer files
                stored = f"transformer.layers.{layer}.self_attn.in_projs.0.weight"
            if name == "self_attn.out_proj.weight" and stored not in tensors:
                stored = f"transformer.layers.{layer}.self_attn.out_projs.0.weight"
            parts[stored] = Part(f"model.layers.{layer}.{ours}", shape, edit)
    return parts


# Regular expressions for published Mimi tensor names, with the names used by transformers.
OF_MIMI = [
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"^(encoder|decoder)_transformer\.transformer\.", r"\1_transformer."),
    (r"\.conv\.conv\.conv\.", ".conv."),
    (r"\.convtr\.convtr\.convtr\.", ".conv."),
    (r"\.conv\.conv\.", ".conv."),
    (r"\.convtr\.convtr\.", ".conv."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.linear1\.", ".mlp.fc1."),
    (r"\.linear2\.", ".mlp.fc2."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"quantizer\.rvq_first\.", "quantizer.semantic_residual_vector_quantizer."),
    (r"quantizer\.rvq_rest\.", "quantizer.acoustic_residual_vector_quantizer."),
    (r"quantizer\.vq\.layers", "quantizer.layers"),
    (r"\._codebook\._initialized", ".codebook.initialized"),
    (r"\._codebook\.embedding_sum", ".codebook.embed_sum"),
    (r"\._codebook\.", ".codebook."),
]


class MimiTensors(Mapping[str, Tensor]):
    """Tensors in Kyutai's Mimi file by the names that transformers uses, read on access."""

    def __init__(self, stored: Mapping[str, Tensor], heads: int):
        self._stored = stored
        self._heads = heads
        self._sources: dict[str, tuple[str, int | None]] = {}
        for published in stored:
            name = published
            for pattern, to in OF_MIMI:
                name = re.sub(pattern, to, name)
            if name.endswith("self_attn.in_proj_weight"):
                for index, letter in enumerate("qkv"):
                    ours = name.replace("in_proj_weight", f"{letter}_proj.weight")
                    self._sources[ours] = published, index
            else:
                self._sources[name] = published, None

    def __getitem__(self, name: str) -> Tensor:
        published, index = self._sources[name]
        tensor = self._stored[published]
        if index is None:
            return tensor
        if tensor.ndim != 2 or tensor.shape[0] % (6 * self._heads):
            raise CheckpointError(f"{published}: expected queries, keys and values, got shape {list(tensor.shape)}")
        weight = tensor.chunk(3)[index]
        return weight if index == 2 else halves(weight, self._heads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def codec_network(config: Mapping[str, Any], folder: Path, num_codebooks: int, codebook_size: int) -> Network:
    """Return Mimi, in transformers format, from the file that config.json names."""
    mimi = mimi_config(config, folder)
    sizes = (mimi.num_quantizers, mimi.codebook_size)
    if sizes[0] < num_codebooks or sizes[1] != codebook_size:
        expected = f"{num_codebooks} codebooks of {codebook_size} codes"
        raise CheckpointError(f"config.json: mimi_config_name: expected {expected}, got {sizes[0]} of {sizes[1]}")
    path = named_file(folder, {MIMI_KEY: FIRST_MIMI, **config}, MIMI_KEY)
    tensors = MimiTensors(open_tensors(path), mimi.num_attention_heads)
    parts = unchanged(shapes_of(MimiModel, mimi))
    check(parts, tensors, ())
    return Network("codec", {**mimi.to_dict(), "architectures": ["MimiModel"]}, parts, tensors)


def mimi_config(config: Mapping[str, Any], folder: Path) -> MimiConfig:
    """Return the hyperparameters of Mimi: from the file that the release names, or as published."""
    if config.get("mimi_config_name") is None:
        return MimiConfig()
    path = named_file(folder, config, "mimi_config_name")
    record = json_object(path)

    def size(name: str, stop: int = MAX_WIDTH) -> int:
        return integer(record, name, stop - 1, file=path.name)

    ratios = entry(record, "seanet.ratios", path.name)
    is_list = isinstance(ratios, list) and 1 <= len(ratios) <= MAX_RATIOS
    if not is_list or not all(type(ratio) is int and 1 <= ratio <= MAX_RATIO for ratio in ratios):
        expected = f"1 to {MAX_RATIOS} integers from 1 to {MAX_RATIO}"
        raise CheckpointError(f"{path.name}: seanet.ratios: expected {expected}, got {shown(ratios)}")
    heads = size("transformer.num_heads")
    width = size("seanet.dimension")
    inner = size("quantizer.dimension")
    return MimiConfig(
        hidden_size=width,
        num_filters=size("seanet.n_filters"),
        upsampling_ratios=ratios,
        codebook_size=size("quantizer.bins"),
        codebook_dim=inner,
        num_quantizers=size("quantizer.n_q", MAX_CODEBOOKS),
        vector_quantization_hidden_dimension=inner,
        upsample_groups=width,
        num_hidden_layers=size("transformer.num_layers", MAX_CODEBOOKS),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=size("transformer.d_model") // heads,
        intermediate_size=size("transformer.dim_feedforward"),
        sliding_window=size("transformer.context", 1 << 20),
    )
