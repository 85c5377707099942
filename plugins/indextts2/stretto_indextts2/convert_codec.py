"""Conversion of IndexTTS-2's acoustic decoder: files of three releases become the tensors of `IndexTtsCodec`.

gpt.pth                                       language model, for its second pass
s2mel.pth                                     projection of latents, length regulator, flow
hf_cache/semantic_codec_model.safetensors     codebook of MaskGCT's semantic codec
hf_cache/bigvgan/                             vocoder
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stretto.family.conversion import Network
from stretto.untrusted_files import check_value, json_object, released_file
from stretto.weights.loading import Part, open_tensors, shapes_of
from stretto_indextts2.codec import NAME, IndexTtsCodec, IndexTtsConfig
from stretto_indextts2.family import HOP, SAMPLE_RATE
from stretto_indextts2.release_files import pickled_tensors, plain_weights, plan_of, renamed
from stretto_indextts2.vocoder import BLOCK_KERNELS, DILATIONS, RATES

FLOW_FILE = "s2mel.pth"
# path of the file in the authors' code, and in a download of its repository
SEMANTIC_FILES = ("hf_cache/semantic_codec_model.safetensors", "hf_cache/semantic_codec/model.safetensors")
QUANTIZER = "quantizer.quantizers.0."
VOCODER_FOLDER = "hf_cache/bigvgan"
MODULE = "module."  # of names after training on several GPUs
# Layers of GPT-2, whose weights are published as [inputs, outputs].
TRANSPOSED = re.compile(r"latents\.gpt\.h\.\d+\.(attn|mlp)\.c_\w+\.weight")
# Values of BigVGAN's config.json that this decoder needs.
VOCODER = {
    "resblock": "1",
    "upsample_rates": [*RATES],
    "upsample_kernel_sizes": [2 * rate for rate in RATES],
    "resblock_kernel_sizes": [*BLOCK_KERNELS],
    "resblock_dilation_sizes": [[*DILATIONS] for _ in BLOCK_KERNELS],
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
    "activation": "snakebeta",
    "snake_logscale": True,
    "hop_size": HOP,
    "sampling_rate": SAMPLE_RATE,
}


def codec_network(folder: Path, gpt: Mapping[str, Tensor], heads: int, flow_heads: int) -> Network:
    """Return the codec to be written.

    Args:
        gpt: Tensors of `gpt.pth` by published name.
        heads: Attention heads of GPT-2.
        flow_heads: Attention heads of the flow's transformer.
    """
    published = renamed(gpt, "", "latents.")
    published |= _flow_tensors(folder)
    published |= renamed(open_semantic_codec(folder), QUANTIZER, "quantizer.")
    published |= _vocoder_tensors(folder)
    tensors = plain_weights(published, folder)
    config = IndexTtsConfig.from_shapes({name: tensor.shape for name, tensor in tensors.items()}, heads, flow_heads)
    shapes = shapes_of(IndexTtsCodec, config)
    transposed = [name for name in shapes if TRANSPOSED.fullmatch(name)]
    plan = plan_of(shapes, tensors) | {name: Part(name, shapes[name][::-1], _transposed) for name in transposed}
    record = {"model_type": NAME, "heads": heads, "flow_heads": flow_heads}
    return Network("codec", record, plan, tensors)


def open_semantic_codec(folder: Path) -> Mapping[str, Tensor]:
    """Return the tensors of MaskGCT's semantic codec."""
    name = next((name for name in SEMANTIC_FILES if (folder / name).exists()), SEMANTIC_FILES[0])
    return open_tensors(released_file(folder, name))


def _flow_tensors(folder: Path) -> dict[str, Tensor]:
    path = released_file(folder, FLOW_FILE)
    prefixes = {"cfm": "flow.", "length_regulator": "length_regulator.", "gpt_layer": "gpt_layer."}
    tensors = dict[str, Tensor]()
    for network_name, prefix in prefixes.items():
        stored = pickled_tensors(path, "net", network_name)
        tensors |= {f"{prefix}{name.removeprefix(MODULE)}": tensor for name, tensor in stored.items()}
    return tensors


def _vocoder_tensors(folder: Path) -> dict[str, Tensor]:
    path = released_file(folder, f"{VOCODER_FOLDER}/config.json")
    record = json_object(path)
    for key, value in VOCODER.items():
        check_value(key, record.get(key), value, file=str(path))
    stored = pickled_tensors(released_file(folder, f"{VOCODER_FOLDER}/bigvgan_generator.pt"), "generator")
    return renamed(stored, "", "vocoder.")


def _transposed(weight: Tensor) -> Tensor:
    return weight.T.contiguous()
