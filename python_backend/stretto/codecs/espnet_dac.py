"""`espnet_dac`: the OpusLM codec, which ESPnet calls DAC (a SEANet with an LSTM, and a residual quantiser).

A published folder has `config.yaml` and one `*.pth`, as packed by ESPnet (espnet2/gan_codec/dac/dac.py).
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codecs import seanet
from stretto.codecs.base import CodecSpec, Window
from stretto.codecs.seanet import SeanetShape, SeanetStream, SeanetWidths
from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import UNPARSABLE, entry, yaml_mapping
from stretto.weights.loading import load_strictly, read_tensors

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
# Values that this decoder requires.
REQUIRED: dict[str, Any] = {
    "encdec_channels": 1,
    "encdec_activation": "Snake",
    "encdec_norm": "weight_norm",
    "encdec_causal": False,
    "encdec_pad_mode": "reflect",
    "encdec_true_skip": False,
    "decoder_final_activation": None,
}
# Largest values of sizes; those of the published codecs are far smaller.
SIZES = {
    "hidden_dim": 1 << 14,
    "codebook_dim": 1 << 14,
    "encdec_n_filters": 1 << 12,
    "encdec_n_residual_layers": 16,
    "encdec_kernel_size": 64,
    "encdec_residual_kernel_size": 64,
    "encdec_last_kernel_size": 64,
    "encdec_dilation_base": 16,
    "encdec_compress": 64,
    "encdec_lstm": 16,
    "quantizer_n_q": 256,
    "quantizer_bins": 1 << 20,
}
MAX_RATIOS = 8
MAX_RATIO = 64
MAX_RATE = 1 << 20
NOT_SERVED = ("inited", "cluster_size", "embed_avg")  # training state of a codebook


@dataclass(frozen=True, slots=True)
class EspnetDacConfig:
    """Sizes in a checkpoint; `num_codebooks` is the number for the last listed bandwidth, as in ESPnet's `encode`."""

    sample_rate: int
    num_codebooks: int
    codebook_size: int
    shape: SeanetShape
    widths: SeanetWidths

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "EspnetDacConfig":
        """Return the sizes in `config.yaml`; raise KeyError or ValueError if a value is missing or unsupported."""
        if record["codec"] != "dac":
            raise ValueError(f"codec must be dac, got {record['codec']}")
        parameters = entry(record, "codec_conf.generator_params", CONFIG_FILE)
        if not isinstance(parameters, dict):
            raise ValueError(f"codec_conf.generator_params: expected a mapping, got {shown(parameters)}")
        odd = {name: parameters[name] for name, value in REQUIRED.items() if parameters.get(name, value) != value}
        values = DEFAULTS | parameters
        if odd or values["codebook_dim"] != values["hidden_dim"]:
            raise ValueError(
                f"expected codebook_dim equal to hidden_dim, and {REQUIRED}; got {values['codebook_dim']} and {odd}"
            )
        rate = entry(record, "codec_conf.sampling_rate", CONFIG_FILE)
        ratios = values["encdec_ratios"]
        for name, most in SIZES.items():
            check_size(name, values[name], most)
        check_size("sampling_rate", rate, MAX_RATE)
        if not isinstance(ratios, list) or not 1 <= len(ratios) <= MAX_RATIOS:
            raise ValueError(f"encdec_ratios: expected 1 to {MAX_RATIOS} numbers, got {shown(ratios)}")
        for ratio in ratios:
            check_size("encdec_ratios", ratio, MAX_RATIO)
        bandwidths = values["quantizer_target_bandwidth"]
        if not isinstance(bandwidths, list) or not bandwidths or not is_number(bandwidths[-1]):
            expected = "a list of numbers in (0, 1000] kbit/s"
            raise ValueError(f"quantizer_target_bandwidth: expected {expected}, got {shown(bandwidths)}")
        hop = math.prod(ratios)
        kbps_per_codebook = math.log2(max(2, values["quantizer_bins"])) * math.ceil(rate / hop) / 1000
        affordable = math.floor(bandwidths[-1] / kbps_per_codebook)
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


def check_size(name: str, value: object, most: int) -> None:
    """Raise ValueError unless a value of the config is an integer from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name}: expected an integer in [1, {most}], got {shown(value)}")


def is_number(value: object) -> bool:
    """Return True if a value is a bandwidth in kbit/s, above 0 and at most 1000."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1000


def read_config(directory: Path) -> EspnetDacConfig:
    """Return the sizes in `config.yaml`; raise CheckpointError if it is missing or belongs to another codec."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        return EspnetDacConfig.from_record(yaml_mapping(path))
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: {error if isinstance(error, ValueError) else repr(error)}") from error


def read_generator(directory: Path, num_codebooks: int) -> dict[str, Tensor]:
    """Return the generator's tensors under our module names, with weight norms multiplied out.

    Raises:
        CheckpointError: If there is not exactly one `*.pth` file, or codebooks are missing or differ in shape.
    """
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
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith("quantizer.vq.layers.")}
    return others | {"quantizer.embed": tables}


def multiply_weight_norm_out(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace each weight-norm pair (g, v) among the tensors with the weight g v / |v|.

    The pairs may have torch's older or newer names. g has the size of v in one dimension (the outputs, or the taps of a
    kernel) and size 1 in the others, over which the norm is computed. The weight is in float32, or in float64 like v.
    Other tensors are returned unchanged; if a pair is incomplete, loading reports its tensor as unknown.
    """
    plain = dict(tensors)
    for magnitude, direction in (("weight_g", "weight_v"), (_newer(0), _newer(1))):
        for name in [name for name in tensors if name.endswith(f".{magnitude}")]:
            stem = name.removesuffix(magnitude)
            g = tensors[name]
            v = tensors.get(stem + direction)
            if v is None or not _are_lengths(g.shape, v.shape):
                continue
            del plain[name], plain[stem + direction]
            shared = [dim for dim in range(g.dim()) if g.shape[dim] == 1]
            norm = torch.linalg.vector_norm(v.double(), dim=shared, keepdim=True)
            plain[f"{stem}weight"] = (v.double() * (g.double() / norm)).to(torch.promote_types(v.dtype, torch.float32))
    return plain


def _are_lengths(g: torch.Size, v: torch.Size) -> bool:
    """Return True if g has the shape of the norms of v over all dimensions but one."""
    return len(v) > 1 and any(
        [*g] == [size if dim == kept else 1 for dim, size in enumerate(v)] for kept in range(len(v))
    )


def _newer(number: int) -> str:
    return f"parametrizations.weight.original{number}"


class EuclideanCodebooks(nn.Module):
    """Residual quantiser with codebooks [K, V, D]; each one quantises the residual of the previous ones."""

    embed: Tensor

    def __init__(self, num_codebooks: int, codebook_size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("embed", torch.zeros(num_codebooks, codebook_size, width))

    def encode(self, latents: Tensor) -> Tensor:
        """Encode latents [D, T] to codes [K, T]: the index of the nearest vector in each codebook."""
        residual = latents.T
        codes = []
        for table in self.embed:
            distance = table.square().sum(1) - 2 * residual @ table.T
            codes.append(distance.argmin(1))
            residual = residual - table[codes[-1]]
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, T] to latents [B, D, T]."""
        books = torch.arange(codes.shape[1], device=codes.device)
        return self.embed[books[:, None], codes].sum(1).transpose(1, 2)


class EspnetDac(nn.Module):
    """ESPnet's DAC. The streaming state is the (h, c) of the decoder's LSTM."""

    def __init__(self, config: EspnetDacConfig) -> None:
        super().__init__()
        self.encoder = seanet.make_encoder(config.shape, config.widths)
        self.decoder = seanet.make_decoder(config.shape, config.widths)
        self.quantizer = EuclideanCodebooks(config.num_codebooks, config.codebook_size, config.widths.latent)
        recurrence = self.decoder[1]
        assert isinstance(recurrence, seanet.Recurrence)
        self.stream = SeanetStream(config.shape, self.decoder[0], recurrence.lstm, self.decoder[2:])
        self.spec = CodecSpec(
            name="espnet_dac",
            sample_rate=config.sample_rate,
            samples_per_frame=config.shape.hop,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            streaming=self.stream.streaming,
        )

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n], to codes, int64 [K, T]; a partial last frame is padded by reflection."""
        if len(pcm) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = torch.from_numpy(np.asarray(pcm)).to(self.quantizer.embed)
        codes = self.quantizer.encode(self.encoder(samples[None, None])[0])
        return codes[: self.spec.num_codebooks].cpu().numpy()

    def initial_state(self, batch: int) -> Tensor:
        return self.stream.initial_state(batch)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        latents = self.quantizer.decode(window.codes.to(self.quantizer.embed.device))
        pcm, state = self.stream(latents, window.left, window.right, window.state)
        return pcm.clamp(-1, 1), state


def load(directory: Path, device: str = "cpu") -> EspnetDac:
    """Return the codec published in `directory` or its subfolder `codec/`."""
    directory = directory / "codec" if (directory / "codec").is_dir() else directory
    codec = EspnetDac(read_config(directory))
    load_strictly(codec, read_generator(directory, codec.spec.num_codebooks), directory)
    return codec.eval().requires_grad_(False).to(device)


def published_shape(directory: Path) -> tuple[int, int]:
    """Return the number of codebooks and the codebook size of the codec published in `directory`."""
    config = read_config(directory)
    return config.num_codebooks, config.codebook_size
