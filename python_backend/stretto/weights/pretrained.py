"""Strict reading of transformers' models and their configurations."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig, PreTrainedModel, logging

from stretto.errors import CheckpointError
from stretto.untrusted_files import (
    LEADS_ELSEWHERE,
    UNPARSABLE,
    check_layers,
    json_object,
    plain_name,
    regular_file,
    released_file,
    without_keys,
)
from stretto.weights.loading import CONFIG_FILE, UNREADABLE, check_finite, raise_mismatch

Config = TypeVar("Config", bound=PretrainedConfig)
Model = TypeVar("Model", bound=PreTrainedModel)


def load_config(config_class: type[Config], directory: Path) -> Config:
    """Read the configuration in a folder; raise CheckpointError if it is invalid or belongs to another model."""
    try:
        record = json_object(directory / CONFIG_FILE)
        check_layers(record, directory / CONFIG_FILE)
        if record.get("model_type") != config_class.model_type:
            raise ValueError(f"model_type must be {config_class.model_type}, got {record.get('model_type')}")
        return config_class.from_dict(without_keys(record, (*LEADS_ELSEWHERE, "quantization_config")))
    except (*UNPARSABLE, StrictDataclassError) as error:
        message = " ".join(str(error).split())  # it may have several lines
        raise CheckpointError(f"{directory / CONFIG_FILE}: {message}") from error


def _check_files(directory: Path) -> None:
    """Raise CheckpointError if a file cannot be read, or an index lists files outside the folder."""
    for path in directory.iterdir():
        if path.suffix in (".safetensors", ".bin", ".json"):
            regular_file(path)
        if path.name.endswith(".index.json"):
            named = json_object(path).get("weight_map")
            for name in named.values() if isinstance(named, dict) else ():
                released_file(directory, plain_name(directory, name))


def load_model(model_class: type[Model], directory: Path, optional: Iterable[str] = ()) -> tuple[Model, bool]:
    """Load a transformers model in float32, and return it, and True if its optional parts were loaded.

    Args:
        optional: First components of parameter names (`encoder`, …) that a decoding-only checkpoint may omit. Either
            all of them or none must be present. Parts that are missing stay uninitialized and must not be used.

    Raises:
        CheckpointError: If a file is missing or invalid, or tensors are missing, unknown, not finite or of wrong shape.
    """
    config_class: Any = model_class.config_class
    loaded: Any
    verbosity = logging.get_verbosity()
    has_bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # the report from transformers has one line per name
    logging.disable_progress_bar()
    try:
        _check_files(directory)
        loaded = model_class.from_pretrained(
            str(directory),
            config=load_config(config_class, directory),
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # mismatches are reported below, with the other problems
            output_loading_info=True,
        )
    except (ImportError, *UNREADABLE) as error:
        raise CheckpointError(f"{directory}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
    model, info = loaded
    tensors = model.state_dict()
    absent = set(info["missing_keys"])
    left_out = {name for name in tensors if name.split(".")[0] in set(optional)}
    missing = set() if absent == left_out else absent
    wrong = [name for name, *_ in info["mismatched_keys"]]
    raise_mismatch(missing, info["unexpected_keys"], wrong, directory)
    check_finite({name: tensor for name, tensor in tensors.items() if name not in absent}, directory)
    return model.eval().requires_grad_(False), not absent
