"""A codec's published checkpoint: a directory with `config.json` and `model.safetensors`, as transformers writes it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig, PreTrainedModel, logging

from stretto.codec.strict_loading import UNREADABLE, check_finite, first
from stretto.errors import CheckpointError
from stretto.untrusted_files import LEADS_ELSEWHERE, UNPARSABLE, json_object, regular_file, released_file

CONFIG_FILE = "config.json"
Config = TypeVar("Config", bound=PretrainedConfig)
Model = TypeVar("Model", bound=PreTrainedModel)


def codec_directory(checkpoint: Path) -> Path:
    """Where the codec's files lie: `codec/` in the checkpoint of a speech model, or the directory itself."""
    directory = checkpoint / "codec" if (checkpoint / "codec").is_dir() else checkpoint
    if not (directory / CONFIG_FILE).is_file():
        raise CheckpointError(f"{directory / CONFIG_FILE} is missing")
    return directory


def load_config(config_class: type[Config], directory: Path) -> Config:
    """The configuration in a directory; CheckpointError if it is another model's or does not parse."""
    try:
        record = json_object(directory / CONFIG_FILE)
        if record.get("model_type") != config_class.model_type:
            raise ValueError(f"model_type must be {config_class.model_type}, got {record.get('model_type')}")
        dropped = (*LEADS_ELSEWHERE, "quantization_config")
        kept = {name: value for name, value in record.items() if name not in dropped}
        return config_class.from_dict(kept)
    except (*UNPARSABLE, StrictDataclassError) as error:
        said = " ".join(str(error).split())  # some of it in several lines
        raise CheckpointError(f"{directory / CONFIG_FILE}: {said}") from error


def _check_files(directory: Path) -> None:
    """Raise CheckpointError for files that cannot be read, and for an index that names files elsewhere."""
    for path in directory.iterdir():
        if path.suffix in (".safetensors", ".bin", ".json"):
            regular_file(path)
        if path.name.endswith(".index.json"):
            named = json_object(path).get("weight_map")
            for name in named.values() if isinstance(named, dict) else ():
                released_file(directory, name)


def load_model(model_class: type[Model], directory: Path, optional: Iterable[str] = ()) -> tuple[Model, bool]:
    """The model in float32 with every tensor from the checkpoint, and whether its `optional` parts came along.

    optional: first names of parts (`encoder`, …) that a checkpoint made for decoding alone leaves out, all together.
    Parts that it has left out hold whatever lay in memory: nobody may use them.
    Raises CheckpointError with the names of tensors that are missing, unknown, of another shape or not finite.
    """
    config_class: Any = model_class.config_class
    loaded: Any
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its report of the names below has a line for each
    logging.disable_progress_bar()
    try:
        _check_files(directory)
        loaded = model_class.from_pretrained(
            str(directory),
            config=load_config(config_class, directory),
            dtype=torch.float32,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are named below, with the others
            output_loading_info=True,
        )
    except (ImportError, *UNREADABLE) as error:
        raise CheckpointError(f"{directory}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
    model, info = loaded
    tensors, absent = model.state_dict(), set(info["missing_keys"])
    left_out = {name for name in tensors if name.split(".")[0] in set(optional)}
    missing = [] if absent == left_out else sorted(absent)
    unexpected, wrong = sorted(info["unexpected_keys"]), sorted(name for name, *_ in info["mismatched_keys"])
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong}
    if missing or unexpected or wrong:
        raise CheckpointError(f"{directory}: {', '.join(f'{kind} {first(names)}' for kind, names in found.items())}")
    check_finite({name: tensor for name, tensor in tensors.items() if name not in absent}, directory)
    return model.eval().requires_grad_(False), not absent
