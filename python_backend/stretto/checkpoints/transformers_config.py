"""config.json of a release in transformers' layout, read through its config class."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE

# Keys of a backbone with Llama's layers.
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
    """Return config.json as a `config_class`; CheckpointError if it is of another model, or invalid."""
    kind = config_class.model_type
    if record.get("model_type") != kind:
        raise CheckpointError(f"config.json: expected model_type {kind!r}, got {record.get('model_type')!r}")
    try:
        return config_class.from_dict(dict(record))
    except (*UNPARSABLE, StrictDataclassError) as error:
        said = " ".join(str(error).split())  # some messages have several lines
        raise CheckpointError(f"config.json: not the numbers of {kind}: {said}") from error


def check_heads(config: Any) -> None:
    """Raise CheckpointError for numbers of heads that transformers accepts and vLLM's Llama rejects."""
    for name, count in (("hidden_size", config.hidden_size), ("num_attention_heads", config.num_attention_heads)):
        of = "num_attention_heads" if name == "hidden_size" else "num_key_value_heads"
        if count % getattr(config, of):
            expected = f"{name} to be a multiple of {of}"
            raise CheckpointError(f"config.json: expected {expected}, got {count} and {getattr(config, of)}")


def dtype_of(record: Mapping[str, Any]) -> str | None:
    """Return the dtype in config.json; None if there is none."""
    return record.get("dtype", record.get("torch_dtype"))
