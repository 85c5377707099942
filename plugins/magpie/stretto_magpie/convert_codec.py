"""Conversion of NanoCodec's decoder, from the `.nemo` archive that NVIDIA publishes.

Weight norms are folded. The archive's other networks, the encoder and those used in training, are not read.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from stretto.errors import CheckpointError
from stretto.family.conversion import Network, weight_normed
from stretto.untrusted_files import check_value, optional_entry
from stretto.weights.loading import Part, Plan, check, in_float32
from stretto_magpie.archive import CONFIG, NemoArchive
from stretto_magpie.codec import DILATIONS, FIRST_KERNEL, KERNELS, LAST_KERNEL, NanoCodecConfig, codec_shapes

PREFIX = "audio_decoder."
MODULES = "nemo.collections.tts.modules.audio_codec_modules."
ALPHA = ".alpha"  # end of our name of an activation's factors
WEIGHT = ".conv.weight"  # end of our name of a convolution's weight, which has a weight norm
# Supported values of a config; None if it may be absent, for which NeMo has the same default.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "vector_quantizer._target_": (f"{MODULES}GroupFiniteScalarQuantizer",),
    "audio_decoder._target_": (f"{MODULES}CausalHiFiGANDecoder",),
    "audio_decoder.activation": ("half_snake",),
    "audio_decoder.output_activation": ("clamp",),
    "audio_decoder.pad_mode": (None, "zeros"),
    "audio_decoder.n_groups_equal_to_out_channels": (None, True),
    "audio_decoder.in_kernel_size": (None, FIRST_KERNEL),
    "audio_decoder.out_kernel_size": (None, LAST_KERNEL),
    "audio_decoder.resblock_kernel_sizes": (None, [*KERNELS]),
    "audio_decoder.resblock_dilation_sizes": (None, [*DILATIONS]),
}


def codec_network(path: Path, frame_stacking_factor: int = 1) -> Network:
    """Return the decoder in an archive, to be written to `codec/`, for stacks of `frame_stacking_factor` frames."""
    with NemoArchive(path) as archive:
        record = archive.config()
        stored = archive.tensors()
    tensors = in_float32({name: stored[name] for name in stored if name.startswith(PREFIX)}, path)
    try:
        config = read_config(record, frame_stacking_factor)
        parts = plan(config)
        check(parts, tensors, ())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Network("codec", config.to_record(), parts, tensors)


def read_config(record: Mapping[str, Any], frame_stacking_factor: int) -> NanoCodecConfig:
    """Return the sizes in an archive's config; raise CheckpointError if a value is missing or not supported."""
    for name, values in EXPECTED.items():
        check_value(name, optional_entry(record, name), *values, file=CONFIG)
    sizes = {**record["vector_quantizer"], **record["audio_decoder"], "frame_stacking_factor": frame_stacking_factor}
    config = NanoCodecConfig.from_record({**sizes, "sample_rate": record.get("sample_rate")})
    check_value("samples_per_frame", record.get("samples_per_frame"), prod(config.up_sample_rates), file=CONFIG)
    check_value("audio_decoder.input_dim", sizes.get("input_dim"), config.width, file=CONFIG)
    return config


def plan(config: NanoCodecConfig) -> Plan:
    """Return the tensors to write, by published name."""
    parts: Plan = {}
    for name, shape in codec_shapes(config).items():
        published = f"{PREFIX}{name}"
        if name.endswith(ALPHA):
            published = f"{published.removesuffix(ALPHA)}.activation.snake_act.alpha"
            parts[published] = Part(name, (1, *shape, 1), Tensor.flatten)
        elif name.endswith(WEIGHT):
            layer = published.removesuffix(".weight")
            norms, directions = (f"{layer}.parametrizations.weight.original{number}" for number in range(2))
            parts[directions] = Part(name, shape, weight_normed, others={norms: (shape[0], 1, 1)})
        else:
            parts[published] = Part(name, shape)
    return parts
