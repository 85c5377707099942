"""Published codecs with random weights that give audible output.

Strides, kernels and codebooks are as published. Narrow codecs (few channels) serve tests and measurements of streaming
errors, which depend on the strides. Codecs of published width serve speed measurements.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    DacConfig,
    DacModel,
    HubertConfig,
    MimiConfig,
    MimiModel,
    PreTrainedModel,
    XcodecConfig,
    XcodecModel,
)

from lab.releases.codec_cases import of_plugins
from lab.releases.random_qwen3_codec import make_qwen3_codec
from stretto.codecs.base import Codec
from stretto.codecs.espnet_dac import EspnetDac, EspnetDacConfig
from stretto.codecs.mimi import MimiCodec
from stretto.codecs.seanet import SeanetShape, SeanetWidths, keep_lengths_on_host
from stretto.codecs.xcodec import ENCODING, TRAINING

Model = TypeVar("Model", bound=PreTrainedModel)


def hubert_config(is_narrow: bool) -> HubertConfig:
    """Return the configuration of X-codec's semantic encoder, always two layers, which decoding does not use."""
    width = 16 if is_narrow else 768
    return HubertConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )


def acoustic_config(ratios: list[int], is_narrow: bool) -> DacConfig:
    """Return the configuration of X-codec's DAC, whose encoder and decoder list strides in the same order."""
    record = {
        "encoder_hidden_size": 2 if is_narrow else 64,
        "downsampling_ratios": ratios,
        "upsampling_ratios": ratios,
        "decoder_hidden_size": 32 * 2 ** (len(ratios) - 4) if is_narrow else 1024,
        "hidden_size": 16 if is_narrow else 256,
    }
    return DacConfig.from_dict(record)


def xcodec(is_narrow: bool, codebook_size: int = 1024) -> XcodecModel:
    """Return X-codec: 8 codebooks at 16 kHz and 50 Hz."""
    config = XcodecConfig(
        acoustic_model_config=acoustic_config([8, 5, 4, 2], is_narrow),
        semantic_model_config=hubert_config(is_narrow),
        codebook_size=codebook_size,
        target_bandwidths=[0.4 * math.ceil(math.log2(codebook_size))],
    )
    return XcodecModel(config)


def dac(sampling_rate: int, is_narrow: bool) -> DacModel:
    """Return DAC for 16, 24 or 44.1 kHz, which has 12, 32 or 9 codebooks as published."""
    config = DacConfig(
        encoder_hidden_size=2 if is_narrow else 64,
        downsampling_ratios=[2, 4, 8, 8] if sampling_rate == 44_100 else [2, 4, 5, 8],
        decoder_hidden_size=32 if is_narrow else 1536,
        n_codebooks={16_000: 12, 24_000: 32, 44_100: 9}[sampling_rate],
        sampling_rate=sampling_rate,
    )
    return DacModel(config)


MODELS: dict[str, Callable[[bool], PreTrainedModel]] = {
    "xcodec": xcodec,
    "dac_16khz": lambda is_narrow: dac(16_000, is_narrow),
    "dac_24khz": lambda is_narrow: dac(24_000, is_narrow),
    "dac_44khz": lambda is_narrow: dac(44_100, is_narrow),
}


def models() -> dict[str, Callable[[bool], PreTrainedModel]]:
    """Return MODELS and the plug-ins' models."""
    return MODELS | of_plugins("MODELS")


def codec_of(model: str) -> str:
    """Return the name of the codec for a key of `models()`."""
    return model.split("_")[0]


def make_model(name: str, is_narrow: bool = True, seed: int = 0) -> PreTrainedModel:
    """Return one of `models()` with random weights whose layers roughly preserve the magnitude of their input.

    With the default initialisation of transformers, the signal fades before it reaches the waveform.
    """
    torch.manual_seed(seed)  # for weights that `randomize` does not set
    model = randomize(models()[name](is_narrow), seed)
    if isinstance(model, DacModel):
        model.decoder.conv2.weight.mul_(0.2)  # about as loud as speech, because rounding errors grow with the level
    return model


def randomize(model: Model, seed: int) -> Model:
    """Fill a model with the random weights of `make_model`."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.normal_(module.weight, std=0.6 / math.sqrt(module.weight[0].numel()))
        elif isinstance(module, nn.ConvTranspose1d):  # an output sums two inputs
            nn.init.normal_(module.weight, std=0.6 / math.sqrt(2 * module.weight.shape[0]))
    for key, buffer in model.named_buffers():
        if key.endswith("codebook.embed"):
            buffer.normal_()
    return model.eval().requires_grad_(False)


def write_checkpoint(name: str, directory: Path, is_narrow: bool = True) -> Path:
    """Write one of `models()` in the published layout, without X-codec parts for encoding and training only."""
    model = make_model(name, is_narrow)
    model.save_pretrained(directory)
    if codec_of(name) != "dac":
        left_out = ENCODING + TRAINING
        tensors = {key: value for key, value in model.state_dict().items() if key.split(".")[0] not in left_out}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


Module = TypeVar("Module", bound=nn.Module)


def mimi(is_narrow: bool) -> MimiCodec:
    narrow = {"num_filters": 4, "num_hidden_layers": 2, "intermediate_size": 64} if is_narrow else {}
    model = loud(MimiModel(MimiConfig.from_dict({"layer_scale_initial_scale": 0.5} | narrow)))
    # Otherwise samples and rounding errors are larger than those of speech.
    next(model.decoder.layers[-1].parameters()).mul_(0.2)
    return MimiCodec(model)


def espnet_dac(is_narrow: bool) -> Codec:
    shape = SeanetShape(ratios=(8, 5, 4, 2), residual_kernel=7, num_residual_layers=3)
    widths = SeanetWidths(base=4 if is_narrow else 32, latent=64 if is_narrow else 512)
    config = EspnetDacConfig(16_000, num_codebooks=8, codebook_size=1024, shape=shape, widths=widths)
    return loud(EspnetDac(config))


def qwen3_12hz(is_narrow: bool) -> Codec:
    return make_qwen3_codec("narrow" if is_narrow else "wide")


def qwen3_12hz_small(is_narrow: bool) -> Codec:
    """Return the Qwen3-TTS codec: an eighth of all widths if `is_narrow`, otherwise the published widths."""
    return make_qwen3_codec("small" if is_narrow else "wide")


STATEFUL: dict[str, Callable[[bool], Codec]] = {
    "espnet_dac": espnet_dac,
    "mimi": mimi,
    "qwen3_12hz": qwen3_12hz,
    "qwen3_12hz_small": qwen3_12hz_small,
}


def loud(module: Module) -> Module:
    """Fill a module's codebooks, which are initially zero, and switch the module to evaluation mode."""
    for name, buffer in module.named_buffers():
        if name.endswith(("codebook.embed", "quantizer.embed", "embed_sum")):
            buffer.normal_(0, 0.2)  # many are summed
    return module.eval().requires_grad_(False)


def make_stateful(name: str, is_narrow: bool = True, seed: int = 0, device: str = "cpu") -> Codec:
    """Return one of STATEFUL on a device, prepared as the loader prepares a published checkpoint."""
    torch.manual_seed(seed)
    codec = STATEFUL[name](is_narrow)
    assert isinstance(codec, nn.Module)
    keep_lengths_on_host(codec.to(device))
    return codec
