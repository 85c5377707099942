"""Conversion of XEUS and its k-means model, which compute OpusLM's semantic codes, from espnet/xeus.

    model/config.yaml, model/xeus_checkpoint_new.pth, model/km_opus_lm.mdl

Names and defaults: espnet2/{tasks/ssl,asr/frontend/cnn,asr/preencoder/linear,asr/encoder/e_branchformer_encoder}.py of
https://github.com/espnet/espnet. `xeus_checkpoint_old.pth` has the names of the branch that XEUS was trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stretto.checkpoints import shards
from stretto.checkpoints.release import entry, read_tensors
from stretto.checkpoints.shards import Entry, Written
from stretto.checkpoints.tensors import Part, check
from stretto.codec.espnet_dac_checkpoint import multiply_weight_norm_out
from stretto.errors import CheckpointError
from stretto.families.opuslm.kmeans import read_centres
from stretto.families.opuslm.ssl_tokenizer import CONFIG, FOLDER, WEIGHTS
from stretto.families.opuslm.xeus import Xeus
from stretto.families.opuslm.xeus_config import XeusConfig
from stretto.untrusted_files import UNPARSABLE, released_file, yaml_mapping

CHECKPOINTS, CLUSTERS = ("xeus_checkpoint_new.pth", "xeus_checkpoint_old.pth"), "km_opus_lm.mdl"
DROPPED = ("losses.", "util_modules.", "masker.", "global_step")  # tensors that are only needed for training
OLD_POSITIONS, POSITIONS = "encoder.embed.0.conv.", "encoder.embed.0.convs.0."
CONVOLUTIONS = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
# Values that this package's XEUS supports, by ESPnet's arguments: (ESPnet's default, allowed values).
FRONT_END: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "norm_mode": (None, ("layer_norm", "group_norm")),
    "conv_mode": (None, ("standard",)),
    "fs": (16000, (16000, "16k")),
    "layer_norm_cls": ("transposed", ("transposed", "dim1")),
}
ENCODER: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "attention_layer_type": ("rel_selfattn", ("selfattn",)),
    "pos_enc_layer_type": ("rel_pos", ("conv",)),
    "input_layer": ("conv2d", (None, "none", "wav2vec")),
    "use_linear_after_conv": (False, (False,)),
    "gate_activation": ("identity", ("identity",)),
    "use_ffn": (False, (True,)),
    "macaron_ffn": (False, (True,)),
    "ffn_activation_type": ("swish", ("swish",)),
    "positionwise_layer_type": ("linear", ("linear",)),
    "qk_norm": (False, (False,)),
}


def read_config(path: Path) -> XeusConfig:
    """Return the hyperparameters in `config.yaml`; CheckpointError if they are of another model than XEUS."""
    record = yaml_mapping(path)
    front_end, encoder = _part(record, "frontend_conf"), _part(record, "encoder_conf")
    expected = {"frontend": "wav2vec_cnn", "preencoder": "linear", "encoder": "e_branchformer", "normalize": None}
    for name, value in expected.items():
        if record.get(name) != value:
            raise CheckpointError(f"{path}: {name}: expected {value}, got {record.get(name)}")
    for part, given, rules in (("frontend_conf", front_end, FRONT_END), ("encoder_conf", encoder, ENCODER)):
        for name, (default, allowed) in rules.items():
            value = given.get(name, default)
            if value not in allowed:
                raise CheckpointError(f"{path}: {part}.{name}: expected one of {allowed}, got {value}")
    try:
        config = config_from(front_end, encoder)
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: expected the numbers of XEUS, got {error!r}") from error
    if entry(record, "preencoder_conf.output_size") != config.hidden:
        raise CheckpointError(f"{path}: preencoder_conf.output_size: expected {config.hidden}, as the encoder's")
    return config


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = entry(record, name)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"config.yaml: {name}: expected a mapping, got {part!r}")
    return part


def config_from(front_end: Mapping[str, Any], encoder: Mapping[str, Any]) -> XeusConfig:
    """Return the hyperparameters from two parts of config.yaml, with ESPnet's defaults.

    Raises:
        TypeError, KeyError, ValueError: If they are of another model.
    """
    return XeusConfig(
        convolutions=tuple((*layer,) for layer in front_end.get("shapes", CONVOLUTIONS)),
        hidden=encoder.get("output_size", 256),
        heads=encoder.get("attention_heads", 4),
        blocks=encoder.get("num_blocks", 12),
        feed_forward=encoder.get("linear_units", 2048),
        gate=encoder.get("cgmlp_linear_units", 2048),
        gate_kernel=encoder.get("cgmlp_conv_kernel", 31),
        merge_kernel=encoder.get("merge_conv_kernel", 3),
        norm=front_end["norm_mode"],
        has_bias=front_end["bias"],
        normalizes_audio=front_end.get("normalize_audio", False),
        normalizes_output=front_end.get("normalize_output", False),
    )


@dataclass(frozen=True)
class ConvertedSslTokenizer:
    """Contents of `ssl_tokenizer/` to be written.

    Attributes:
        record: Its config.json.
        entries: Its tensors.
        dropped: Shapes of tensors that are only needed for training, by name.
    """

    record: dict[str, Any]
    entries: list[Entry]
    dropped: dict[str, list[int]]

    @classmethod
    def of(cls, folder: Path, num_codes: int) -> "ConvertedSslTokenizer":
        """Return the conversion of the published directory, or of the one above it.

        Args:
            folder: Published directory.
            num_codes: Number of semantic tokens of the language model.

        Raises:
            CheckpointError: If anything does not fit; the message names it.
        """
        folder = folder / "model" if (folder / "model").is_dir() else folder
        config = read_config(released_file(folder, "config.yaml"))
        published = read_tensors(released_file(folder, _checkpoint(folder).name))
        tensors = multiply_weight_norm_out(
            {name.replace(OLD_POSITIONS, POSITIONS): tensor for name, tensor in published.items()}
        )
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in Xeus(config).state_dict().items()}
        dropped = check({name: Part(f"xeus.{name}", shape) for name, shape in shapes.items()}, tensors, DROPPED)
        centres = torch.from_numpy(read_centres(released_file(folder, CLUSTERS)))
        if centres.shape != (num_codes, config.hidden):
            raise CheckpointError(
                f"{folder / CLUSTERS}: expected {num_codes} centres of {config.hidden}, got {list(centres.shape)}"
            )
        entries = [
            Entry(f"xeus.{name}", torch.float32, shape, partial(tensors.__getitem__, name))
            for name, shape in shapes.items()
        ]
        entries.append(Entry("centres", torch.float32, tuple(centres.shape), lambda: centres))
        return cls(config.to_record(), entries, {name: list(tensors[name].shape) for name in dropped})

    def write(self, folder: Path, progress: shards.Progress) -> list[Written]:
        """Write `config.json` and `model.safetensors`."""
        files = [shards.write_json(folder / CONFIG, self.record)]
        files.append(shards.write_file(folder / WEIGHTS, self.entries, progress))
        return [replace(file, name=f"{FOLDER}/{file.name}") for file in files]


def _checkpoint(folder: Path) -> Path:
    """Return the first existing file of CHECKPOINTS, or the only `*.pth`."""
    found = sorted(folder.glob("*.pth"))
    named = [folder / name for name in CHECKPOINTS if folder / name in found]
    if named:
        return named[0]
    if len(found) != 1:
        raise CheckpointError(f"{folder}: expected {CHECKPOINTS[0]} or one *.pth, got {[path.name for path in found]}")
    return found[0]
