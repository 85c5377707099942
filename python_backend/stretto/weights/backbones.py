"""Hyperparameters of backbones that a release only names, from a config.json or a table."""

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import LEADS_ELSEWHERE, UNPARSABLE, check_layers, check_value, read_json, without_keys
from stretto.weights.loading import shapes_of

# Config keys of a backbone with Llama layers.
LLAMA_NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
)


def read_numbers(config_class: Any, record: Mapping[str, Any]) -> Any:
    """Parse a config.json as `config_class`; raise CheckpointError if it is invalid or belongs to another model."""
    model_type = config_class.model_type
    check_value("model_type", record.get("model_type"), model_type)
    try:
        config = config_class.from_dict(without_keys(record))
        for name in ("max_position_embeddings", "rms_norm_eps"):
            if not 0 < (value := getattr(config, name, 1)) < inf:
                raise ValueError(f"{name}: expected a positive finite number, got {value}")
    except (*UNPARSABLE, StrictDataclassError) as error:
        message = " ".join(str(error).split())  # some messages have several lines
        raise CheckpointError(f"config.json: invalid parameters for {model_type}: {message}") from error
    return config


def with_older_keys(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a config.json with transformers 4's keys, even if version 5 wrote the file.

    Version 5 writes `rope_theta` and `rope_scaling` as `rope_parameters`, and may write `num_experts` as
    `num_local_experts`.
    """
    older = dict[str, Any]()
    if isinstance(rope := record.get("rope_parameters"), Mapping):
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        older |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
        older["rope_scaling"] = None if scaling in ({}, {"rope_type": "default"}) else scaling
    if "num_local_experts" in record:
        older["num_experts"] = record["num_local_experts"]
    return {**older, **record}


def check_heads(config: Any) -> None:
    """Raise CheckpointError for sizes of heads that transformers accepts but vLLM's layers reject.

    Qwen3's heads have a size of their own. Other layers divide the hidden size, and Qwen2's have no other size.
    """
    width = config.hidden_size
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads
    pairs = [("num_attention_heads", heads, "num_key_value_heads", kv_heads)]
    if config.model_type != "qwen3":
        pairs.insert(0, ("hidden_size", width, "num_attention_heads", heads))
    for name, count, of, divisor in pairs:
        if min(count, divisor) < 1 or count % divisor:
            raise CheckpointError(f"config.json: expected {name} to be a multiple of {of}, got {count} and {divisor}")
    head_dim = getattr(config, "head_dim", None)
    if config.model_type == "qwen2" and head_dim not in (None, width // heads):
        raise CheckpointError(f"config.json: head_dim: expected {width // heads}, got {shown(head_dim)}")
    if config.model_type == "qwen3" and config.head_dim < 1:
        raise CheckpointError(f"config.json: head_dim: expected a positive number, got {shown(head_dim)}")


def check_plain_layers(config: Any, prefix: str = "") -> None:
    """Raise CheckpointError if layers have biases or an activation other than SiLU.

    Args:
        prefix: Path of `config` within config.json, with a dot at the end, for error messages.
    """
    for name, expected in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        check_value(f"{prefix}{name}", getattr(config, name), expected)


def dtype_of(record: Mapping[str, Any]) -> str | None:
    """Return the dtype in config.json, or None if there is none."""
    return record.get("dtype", record.get("torch_dtype"))


CLASSES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
}
QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "attention_bias": False,
}
OLMO2_7B = {
    "model_type": "olmo2",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e5,
    "attention_bias": False,
}
SMOLLM2_1_7B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 130000.0,
    "attention_bias": False,
    "mlp_bias": False,
}
# Contents of published config.json files, by the backbone name that releases use.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-8B-Base": QWEN3_8B,
    "allenai/OLMo-2-1124-7B": OLMO2_7B,
    "HuggingFaceTB/SmolLM2-1.7B": SMOLLM2_1_7B,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": SMOLLM2_1_7B,
}
# Keys of a published config.json that concern tokens and tools, not layers.
SAID_ELSEWHERE = ("architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "vocab_size")
LEFT_OUT = (*SAID_ELSEWHERE, "quantization_config", *LEADS_ELSEWHERE)
# set to null, because the family defines them and a missing key would mean the default of the config class
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_backbone(
    tag: str, path: Path | None, tokenizer: Path, backbones: Mapping[str, dict[str, Any]] = PUBLISHED
) -> dict[str, Any]:
    """Return the hyperparameters of the backbone that a release calls `tag`; raise CheckpointError if it is unknown.

    They are read from `path`, a config.json or its folder, if it is given. Otherwise, they come from the table
    `backbones`, or else from a config.json next to the tokenizer, because the tokenizer's folder may be the backbone's
    repository.
    """
    if path is not None:
        record = read_json(path)
        check_layers(record, path)
    elif tag in backbones:
        record = backbones[tag]
    elif (tokenizer / "config.json").is_file():
        record = read_json(tokenizer)
        check_layers(record, tokenizer)
    else:
        raise CheckpointError(
            f"backbone {tag}: expected one of {sorted(backbones)}, or --backbone with its config.json"
        )
    if record.get("model_type") not in tuple(CLASSES):
        raise CheckpointError(f"backbone {tag}: expected one of {sorted(CLASSES)}, got {record.get('model_type')!r}")
    return {name: without_keys(value) for name, value in record.items() if name not in LEFT_OUT}


def config_of(backbone: dict[str, Any], vocab_size: int, dtype: str) -> dict[str, Any]:
    """Return the contents of config.json for a language model with an untied head."""
    return {
        "architectures": [f"Stretto{backbone['model_type'].capitalize()}ForCausalLM"],
        **backbone,
        **dict.fromkeys(TOKENS),
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
        "dtype": dtype,
    }


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Map the language model's tensor names to their shapes; raise CheckpointError if `config` is incomplete."""
    config_class, model_class = CLASSES[config["model_type"]]
    try:
        return shapes_of(model_class, config_class.from_dict(dict(config)))
    except (*UNPARSABLE, RuntimeError, StrictDataclassError) as error:
        raise CheckpointError(f"backbone: invalid parameters for {config['model_type']}: {error}") from error
