"""Reader of `config.yaml` as published in https://huggingface.co/THUDM/glm-4-voice-decoder, without executing it.

The file is HyperPyYAML. `!new:`, `!name:` and `!apply:` would build Python objects; here they yield the mappings that
follow them. `!ref <name>` yields the top-level value of that name.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from stretto.codecs.cosyvoice.flow import EncoderShape, EstimatorShape, SourceShape, VocoderShape
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, yaml_mapping
from stretto.weights.loading import load_strictly, read_tensors

PARTS = ("flow", "hift")


def read_part(directory: Path, part: str) -> dict[str, Tensor]:
    """Return the tensors of one part in float32, weight norms multiplied out; raise CheckpointError if missing."""
    path = directory / f"{part}.pt"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    return multiply_weight_norm_out(read_tensors(path))


def load_part(module: nn.Module, directory: Path, part: str) -> None:
    """Load the tensors of a part into a module; raise CheckpointError for mismatches."""
    load_strictly(module, read_part(directory, part), directory / f"{part}.pt")


CONFIG_FILE = "config.yaml"


@dataclass(frozen=True, slots=True)
class Glm4VoiceConfig:
    """Sizes of a checkpoint. `regulator`: number of convolutions after length regulation."""

    codebook_size: int
    token_rate: Fraction
    token_width: int
    mels: int
    speaker: int
    regulator: int
    guidance: float
    encoder: EncoderShape
    estimator: EstimatorShape
    vocoder: VocoderShape

    @property
    def mels_per_token(self) -> Fraction:
        """Mel frames per token: 441/64 as published."""
        return Fraction(self.vocoder.sample_rate, self.vocoder.samples_per_mel) / self.token_rate

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Glm4VoiceConfig":
        """Return the sizes in `config.yaml`; raise KeyError or ValueError for a missing or unsupported value."""
        flow, hift = record["flow"], record["hift"]
        matching, regulator = flow["decoder"], flow["length_regulator"]
        solver = matching["cfm_params"]["content"]
        _require(flow, output_size=80, output_type="mel")
        _require(solver, solver="euler", t_scheduler="cosine")
        _require(hift, in_channels=flow["output_size"])
        _require(regulator, channels=flow["output_size"])
        estimator = _estimator(matching["estimator"], flow["output_size"])
        return cls(
            codebook_size=flow["vocab_size"],
            token_rate=Fraction(str(flow["input_frame_rate"])),
            token_width=flow["input_size"],
            mels=flow["output_size"],
            speaker=flow["spk_embed_dim"],
            regulator=len(regulator["sampling_ratios"]),
            guidance=float(solver["inference_cfg_rate"]),
            encoder=_encoder(flow["encoder"]),
            estimator=estimator,
            vocoder=_vocoder(hift),
        )


def _encoder(given: dict[str, Any]) -> EncoderShape:
    _require(
        given,
        normalize_before=True,
        input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="block_rel_selfattn",
        use_cnn_module=False,
        macaron_style=False,
    )
    return EncoderShape(
        width=given["output_size"],
        heads=given["attention_heads"],
        inner=given["linear_units"],
        layers=given["num_blocks"],
        block=given["block_size"],
    )


def _estimator(given: dict[str, Any], mels: int) -> EstimatorShape:
    _require(given, in_channels=4 * mels, out_channels=mels, act_fn="gelu")
    return EstimatorShape(
        tuple(given["channels"]),
        given["attention_head_dim"],
        given["num_heads"],
        given["n_blocks"],
        given["num_mid_blocks"],
    )


def _vocoder(given: dict[str, Any]) -> VocoderShape:
    predictor, fourier = given["f0_predictor"], given["istft_params"]
    _require(predictor, num_class=1, in_channels=given["in_channels"])
    source = SourceShape(
        given["nb_harmonics"],
        given["nsf_alpha"],
        given["nsf_sigma"],
        given["nsf_voiced_threshold"],
        predictor["cond_channels"],
    )
    return VocoderShape(
        channels=given["base_channels"],
        sample_rate=given["sampling_rate"],
        rates=tuple(given["upsample_rates"]),
        kernels=tuple(given["upsample_kernel_sizes"]),
        residuals=_residuals(given, "resblock"),
        source_residuals=_residuals(given, "source_resblock"),
        fourier=fourier["n_fft"],
        hop=fourier["hop_len"],
        slope=given["lrelu_slope"],
        limit=given["audio_limit"],
        source=source,
    )


def _residuals(given: dict[str, Any], name: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    kernels, dilations = given[f"{name}_kernel_sizes"], given[f"{name}_dilation_sizes"]
    return tuple((kernel, tuple(each)) for kernel, each in zip(kernels, dilations, strict=True))


def _require(given: dict[str, Any], **values: Any) -> None:
    """Raise ValueError if the record has another value than the one that this decoder assumes."""
    odd = {name: given.get(name) for name, value in values.items() if given.get(name) != value}
    if odd:
        raise ValueError(f"expected { ({name: values[name] for name in odd}) }, got {odd}")


class _Loader(yaml.SafeLoader):
    """YAML loader that yields mappings in place of objects; one instance per file."""


def _plain(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return None


def _reference(loader: _Loader, node: yaml.Node) -> str:
    return f"!ref {node.value}"


for tag in ("!new:", "!name:", "!apply:"):
    _Loader.add_multi_constructor(tag, _plain)
_Loader.add_constructor("!ref", _reference)


def _resolved(value: Any, names: dict[str, Any]) -> Any:
    """Return the value with each `!ref <name>` replaced."""
    if isinstance(value, dict):
        return {key: _resolved(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [_resolved(each, names) for each in value]
    found = re.fullmatch(r"!ref <(\w+)>", value) if isinstance(value, str) else None
    return names[found[1]] if found else value


def read_config(directory: Path) -> Glm4VoiceConfig:
    """Return the sizes in `config.yaml`; raise CheckpointError if it is missing or of another decoder."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        record = yaml_mapping(path, _Loader)
        return Glm4VoiceConfig.from_record(_resolved(record, record))
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: {error!r}") from error
