"""Stateful codecs with random weights, narrow or as wide as published."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from transformers import EncodecConfig, EncodecModel, MimiConfig, MimiModel

from benchmarks.checkpoints.random_qwen3_codec import make_qwen3_codec
from stretto.codecs.base import Codec
from stretto.codecs.encodec import EncodecCodec
from stretto.codecs.espnet_dac import EspnetDac, EspnetDacConfig
from stretto.codecs.mimi import MimiCodec
from stretto.codecs.seanet import SeanetShape, SeanetWidths, keep_lengths_on_host

Module = TypeVar("Module", bound=nn.Module)
MUSICGEN = {
    "sampling_rate": 32_000,
    "upsampling_ratios": [8, 5, 4, 4],
    "use_causal_conv": False,
    "use_conv_shortcut": False,
    "codebook_size": 2048,
    "target_bandwidths": [2.2],
}


def encodec_24khz(is_narrow: bool) -> Codec:
    """Return facebook/encodec_24khz."""
    config = EncodecConfig(num_filters=4 if is_narrow else 32)
    return EncodecCodec(loud(EncodecModel(config)))


def encodec_32khz(is_narrow: bool) -> Codec:
    """Return facebook/encodec_32khz, Musicgen's codec."""
    config = EncodecConfig.from_dict(MUSICGEN | {"num_filters": 4 if is_narrow else 64})
    return EncodecCodec(loud(EncodecModel(config)))


def mimi(is_narrow: bool) -> Codec:
    """Return kyutai/mimi."""
    narrow = {"num_filters": 4, "num_hidden_layers": 2, "intermediate_size": 64} if is_narrow else {}
    model = loud(MimiModel(MimiConfig.from_dict({"layer_scale_initial_scale": 0.5} | narrow)))
    # Otherwise samples and rounding errors are larger than those of speech.
    next(model.decoder.layers[-1].parameters()).mul_(0.2)
    return MimiCodec(model)


def espnet_dac(is_narrow: bool) -> Codec:
    """Return OpusLM's codec."""
    shape = SeanetShape(ratios=(8, 5, 4, 2), residual_kernel=7, num_residual_layers=3)
    widths = SeanetWidths(base=4 if is_narrow else 32, latent=64 if is_narrow else 512)
    config = EspnetDacConfig(16_000, num_codebooks=8, codebook_size=1024, shape=shape, widths=widths)
    return loud(EspnetDac(config))


def qwen3_12hz(is_narrow: bool) -> Codec:
    """Return Qwen3-TTS' codec."""
    return make_qwen3_codec("narrow" if is_narrow else "wide")


def qwen3_12hz_small(is_narrow: bool) -> Codec:
    """Return Qwen3-TTS' codec with an eighth of all widths, or as wide as published."""
    return make_qwen3_codec("small" if is_narrow else "wide")


STATEFUL: dict[str, Callable[[bool], Codec]] = {
    "encodec_24khz": encodec_24khz,
    "encodec_32khz": encodec_32khz,
    "espnet_dac": espnet_dac,
    "mimi": mimi,
    "qwen3_12hz": qwen3_12hz,
    "qwen3_12hz_small": qwen3_12hz_small,
}


def loud(module: Module) -> Module:
    """Fill the codebooks of a module, which are zero initially, and set it to evaluation."""
    for name, buffer in module.named_buffers():
        if name.endswith(("codebook.embed", "quantizer.embed", "embed_sum")):
            buffer.normal_(0, 0.2)  # many are summed
    return module.eval().requires_grad_(False)


def make_stateful(name: str, is_narrow: bool = True, seed: int = 0, device: str = "cpu") -> Codec:
    """Return one of STATEFUL on a device, as the loader of a published checkpoint does."""
    torch.manual_seed(seed)
    codec = STATEFUL[name](is_narrow)
    assert isinstance(codec, nn.Module)
    keep_lengths_on_host(codec.to(device))
    return codec
