"""Conversion of the codec of a Fish Audio S2 release, `codec.pth`, as published by Fish Audio.

The file has tensors only, so the sizes of the codec come from their shapes. Weight norms are folded. The rows of
queries and keys are reordered, because the authors rotate adjacent pairs of channels, and `codec.py` rotates
channels of two halves.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from stretto.errors import CheckpointError
from stretto.family.conversion import Network, in_halves, weight_normed
from stretto.untrusted_files import released_file
from stretto.weights.loading import Part, Plan, Shape, check, in_float32, open_tensors
from stretto_fish_s2.codec import HEAD_DIM, FishS2Config, codec_shapes

FILE = "codec.pth"
GENERATOR = "generator."  # prefix of the codec's tensors in a file that also has the networks used in training
BUFFERS = (".freqs_cis", ".causal_mask")  # ends of the names of tensors that are computed
# Of the authors' configuration; no tensor depends on them.
SAMPLE_RATE = 44_100
WINDOWS = {"window_size": 128, "encoder_window_size": 512}
# Names of the norms and directions of a weight with a weight norm, by torch's older and newer functions.
OLDER = ("weight_g", "weight_v")
NEWER = ("parametrizations.weight.original0", "parametrizations.weight.original1")
QUERY = ".q_proj.weight"  # end of our name of the queries' rows; published together with those of keys and values
# Parts of our tensor names, and of the published ones. `{}` is the number of the encoder's last block.
RENAMED = (
    (r"^encoder\.downsample\.(\d+)\.0\.", r"quantizer.downsample.\1.0.conv."),
    (r"^encoder\.downsample\.", "quantizer.downsample."),
    (r"^encoder\.pre_transformer\.", "quantizer.pre_module."),
    (r"^encoder\.transformer\.", "encoder.block.{}.block.5."),
    (r"^post_transformer\.", "quantizer.post_module."),
    (r"^upsample\.", "quantizer.upsample."),
    (r"^semantic\.", "quantizer.semantic_quantizer."),
    (r"^residual\.", "quantizer.quantizer."),
    (r"^decoder\.", "decoder.model."),
    (r"\.act1\.", ".block.0."),
    (r"\.conv1\.", ".block.1."),
    (r"\.act2\.", ".block.2."),
    (r"\.conv2\.", ".block.3."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn_layer_scale\.scale$", ".attention_layer_scale.gamma"),
    (r"\.mlp_layer_scale\.scale$", ".ffn_layer_scale.gamma"),
    (r"\.self_attn\.[qkv]_proj\.", ".attention.wqkv."),
    (r"\.self_attn\.o_proj\.", ".attention.wo."),
    (r"\.mlp\.gate_proj\.", ".feed_forward.w1."),
    (r"\.mlp\.down_proj\.", ".feed_forward.w2."),
    (r"\.mlp\.up_proj\.", ".feed_forward.w3."),
)


def codec_network(folder: Path) -> Network:
    """Return the codec of a release, to be written to `codec/`."""
    path = released_file(folder, FILE)
    tensors = read_codec(path)
    try:
        config = FishS2Config.from_record(sizes(tensors))
        parts = plan(config)
        check(parts, tensors, ())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Network("codec", config.to_record(), parts, tensors)


def read_codec(path: Path) -> dict[str, Tensor]:
    """Return the trained tensors of a codec file by published name, in float32."""
    stored = open_tensors(path)
    if any(name.startswith(GENERATOR) for name in stored):
        stored = {name.removeprefix(GENERATOR): stored[name] for name in stored if name.startswith(GENERATOR)}
    return in_float32({name: tensor for name, tensor in stored.items() if not name.endswith(BUFFERS)}, path)


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes of a codec, for `FishS2Config.from_record`. A size without tensors is None or an empty list."""

    def size(name: str, dim: int) -> int | None:
        return tensors[name].shape[dim] if name in tensors and tensors[name].ndim > dim else None

    def size_of_each(name: str, dim: int, first: int = 0) -> list[int]:
        lengths: list[int] = []
        while (length := size(name.format(first + len(lengths)), dim)) is not None:
            lengths.append(length)
        return lengths

    # kernels have twice the length of a stride
    encoder_rates = [kernel // 2 for kernel in size_of_each(f"encoder.block.{{}}.block.4.conv.{NEWER[1]}", 2, 1)]
    layers = {"": "quantizer.pre_module", "encoder_": f"encoder.block.{len(encoder_rates)}.block.5"}
    record: dict[str, Any] = {
        "sample_rate": SAMPLE_RATE,
        "n_codebooks": len(size_of_each("quantizer.quantizer.quantizers.{}.codebook.weight", 0)),
        "semantic_codebook_size": size("quantizer.semantic_quantizer.quantizers.0.codebook.weight", 0),
        "codebook_size": size("quantizer.quantizer.quantizers.0.codebook.weight", 0),
        "codebook_dim": size("quantizer.quantizer.quantizers.0.codebook.weight", 1),
        "encoder_dim": size(f"encoder.block.0.conv.{NEWER[1]}", 0),
        "encoder_rates": encoder_rates,
        "downsample_factor": size_of_each("quantizer.downsample.{}.0.conv.weight", 2),
        "decoder_dim": size(f"decoder.model.0.conv.{NEWER[1]}", 0),
        "decoder_rates": [kernel // 2 for kernel in size_of_each(f"decoder.model.{{}}.block.1.conv.{NEWER[1]}", 2, 1)],
    }
    for prefix, module in layers.items():
        inner = size_of_each(f"{module}.layers.{{}}.feed_forward.w1.weight", 0)
        record |= {f"{prefix}n_layer": len(inner), f"{prefix}intermediate_size": inner[0] if inner else None}
    return record | WINDOWS


def plan(config: FishS2Config) -> Plan:
    """Return the tensors to write, by published name."""
    parts: Plan = {}
    for name_of_ours, shape in codec_shapes(config).items():
        published = published_name(name_of_ours, len(config.encoder_rates))
        layer, _, tensor = published.rpartition(".")
        is_projection = layer.endswith((".in_proj", ".out_proj"))
        is_normed = is_projection or (layer.endswith(".conv") and not layer.startswith("quantizer."))
        if name_of_ours.endswith(QUERY):
            stored = 3 * shape[0], *shape[1:]
            key, value = (name_of_ours.replace(QUERY, f".{name}_proj.weight") for name in "kv")
            also = Part(key, stored, partial(_rows, 1)), Part(value, stored, partial(_rows, 2))
            parts[published] = Part(name_of_ours, stored, partial(_rows, 0), also=also)
        elif tensor == "alpha":
            parts[published] = Part(name_of_ours, (1, *shape), lambda stored: stored[0])
        elif tensor == "weight" and is_normed:
            norms, directions = (f"{layer}.{name}" for name in (OLDER if is_projection else NEWER))
            stored = (*shape, 1) if is_projection else shape
            parts[directions] = Part(name_of_ours, stored, partial(_normed, shape), others={norms: (shape[0], 1, 1)})
        elif published not in parts:  # keys and values are written with queries
            parts[published] = Part(name_of_ours, shape)
    return parts


def published_name(name: str, num_blocks: int) -> str:
    """Return the published name of a tensor, without the suffix of weight norm."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name.format(num_blocks)


def _normed(shape: Shape, directions: Tensor, norms: Tensor) -> Tensor:
    """Return weights of a shape. A pointwise convolution may become a linear layer."""
    return weight_normed(directions, norms).view(shape)


def _rows(index: int, stored: Tensor) -> Tensor:
    """Return the rows of queries, keys or values (part 0, 1 or 2), in our order."""
    rows = stored.chunk(3)[index]
    return rows if index == 2 else in_halves(rows, HEAD_DIM)
