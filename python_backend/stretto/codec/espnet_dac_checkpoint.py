"""What ESPnet publishes of a codec: `config.yaml` and one `*.pth`. It turns their names into ours and checks them.

Names and defaults: DACGenerator in espnet2/gan_codec/dac/dac.py of https://github.com/espnet/espnet.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.codec.seanet.decoder import SeanetWidths
from stretto.codec.seanet.shape import SeanetShape
from stretto.codec.strict_loading import read_tensors
from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, yaml_mapping

CONFIG_FILE = "config.yaml"
GENERATOR = "codec.generator."
DEFAULTS: dict[str, Any] = {
    "hidden_dim": 128,
    "codebook_dim": 8,
    "encdec_n_filters": 32,
    "encdec_n_residual_layers": 1,
    "encdec_ratios": [8, 5, 4, 2],
    "encdec_kernel_size": 7,
    "encdec_residual_kernel_size": 7,
    "encdec_last_kernel_size": 7,
    "encdec_dilation_base": 2,
    "encdec_compress": 2,
    "encdec_lstm": 2,
    "quantizer_n_q": 8,
    "quantizer_bins": 1024,
    "quantizer_target_bandwidth": [7.5, 15],
}
# What the decoder of this package takes for granted.
REQUIRED: dict[str, Any] = {
    "encdec_channels": 1,
    "encdec_activation": "Snake",
    "encdec_norm": "weight_norm",
    "encdec_causal": False,
    "encdec_pad_mode": "reflect",
    "encdec_true_skip": False,
    "decoder_final_activation": None,
}
NOT_SERVED = ("inited", "cluster_size", "embed_avg")  # of a codebook: what training kept


@dataclass(frozen=True, slots=True)
class EspnetDacConfig:
    """The numbers of a checkpoint; `num_codebooks` is what its last bandwidth uses, as ESPnet's `encode` does."""

    sample_rate: int
    num_codebooks: int
    codebook_size: int
    shape: SeanetShape
    widths: SeanetWidths

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "EspnetDacConfig":
        """From the contents of `config.yaml`. KeyError or ValueError name what is missing or not this codec."""
        if record["codec"] != "dac":
            raise ValueError(f"codec must be dac, got {record['codec']}")
        given = record["codec_conf"]["generator_params"]
        odd = {name: given[name] for name, value in REQUIRED.items() if given.get(name, value) != value}
        values = DEFAULTS | given
        if odd or values["codebook_dim"] != values["hidden_dim"]:
            raise ValueError(f"codebook_dim must be hidden_dim, and {REQUIRED}; got {odd}, {values['codebook_dim']}")
        rate, hop = record["codec_conf"]["sampling_rate"], math.prod(values["encdec_ratios"])
        kbps_per_codebook = math.log2(values["quantizer_bins"]) * math.ceil(rate / hop) / 1000
        affordable = math.floor(values["quantizer_target_bandwidth"][-1] / kbps_per_codebook)
        return cls(
            sample_rate=rate,
            num_codebooks=max(1, min(values["quantizer_n_q"], affordable)),
            codebook_size=values["quantizer_bins"],
            shape=SeanetShape(
                ratios=tuple(values["encdec_ratios"]),
                kernel=values["encdec_kernel_size"],
                last_kernel=values["encdec_last_kernel_size"],
                residual_kernel=values["encdec_residual_kernel_size"],
                num_residual_layers=values["encdec_n_residual_layers"],
                dilation_base=values["encdec_dilation_base"],
            ),
            widths=SeanetWidths(
                base=values["encdec_n_filters"],
                latent=values["hidden_dim"],
                compress=values["encdec_compress"],
                lstm_layers=values["encdec_lstm"],
            ),
        )


def read_config(directory: Path) -> EspnetDacConfig:
    """The numbers in `config.yaml`; CheckpointError if it is missing or of another codec."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        return EspnetDacConfig.from_record(yaml_mapping(path))
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: {error!r}") from error


def read_generator(directory: Path, num_codebooks: int) -> dict[str, Tensor]:
    """The generator's tensors by our names, weight norm multiplied out; CheckpointError unless there is one `*.pth`,
    of tensors."""
    paths = sorted(directory.glob("*.pth"))
    if len(paths) != 1:
        raise CheckpointError(f"{directory}: expected one *.pth, got {[path.name for path in paths]}")
    tensors = {
        re.sub(r"\.model\.|\.(conv|convtr)\.\1\.", ".", name.removeprefix(GENERATOR)): tensor
        for name, tensor in read_tensors(paths[0]).items()
        if name.startswith(GENERATOR) and name.rpartition(".")[2] not in NOT_SERVED
    }
    tensors = multiply_weight_norm_out(tensors)
    names = [f"quantizer.vq.layers.{codebook}._codebook.embed" for codebook in range(num_codebooks)]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(f"{paths[0]}: missing {missing}")
    shapes = {name: list(tensors[name].shape) for name in names}
    if any(shape != shapes[names[0]] for shape in shapes.values()):
        raise CheckpointError(f"{paths[0]}: expected codebooks of one shape, got {shapes}")
    tables = torch.stack([tensors[name] for name in names])
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("quantizer.vq.layers.")}
    return rest | {"quantizer.embed": tables}


def multiply_weight_norm_out(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight g v / |v| in place of the pair (g, v), under torch's older and newer names of it.

    In one dimension g is as long as v, a number for each output or each tap of a kernel; the norm is over the others,
    in which g is 1 long. What is no such pair stays, under a name that no module has.
    """
    plain = dict(tensors)
    for magnitude, direction in (("weight_g", "weight_v"), (_newer(0), _newer(1))):
        for name in [name for name in tensors if name.endswith(f".{magnitude}")]:
            stem = name.removesuffix(magnitude)
            g, v = tensors[name], tensors.get(stem + direction)
            if v is None or not _are_lengths(g.shape, v.shape):
                continue
            del plain[name], plain[stem + direction]
            shared = [dim for dim in range(g.dim()) if g.shape[dim] == 1]
            norm = torch.linalg.vector_norm(v.double(), dim=shared, keepdim=True)
            plain[f"{stem}weight"] = (v.double() * (g.double() / norm)).float()
    return plain


def _are_lengths(g: torch.Size, v: torch.Size) -> bool:
    """Whether a tensor of shape g says how long those are that lie in one of shape v along one dimension."""
    return len(v) > 1 and any(
        [*g] == [size if dim == kept else 1 for dim, size in enumerate(v)] for kept in range(len(v))
    )


def _newer(part: int) -> str:
    return f"parametrizations.weight.original{part}"
