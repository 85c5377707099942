"""The published codecs with their real strides and kernels, few channels, and random weights that are heard."""

import math
from pathlib import Path

import torch
from torch import nn
from transformers import (
    DacConfig,
    DacModel,
    HiggsAudioV2TokenizerConfig,
    HubertConfig,
    PreTrainedModel,
    XcodecConfig,
    XcodecModel,
)

from python_backend.codec.higgs import HiggsModel

HUBERT = HubertConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    conv_dim=(8,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


def acoustic_config(ratios: list[int]) -> DacConfig:
    """As X-codec has it: the encoder's strides in the order of the decoder's."""
    return DacConfig(
        encoder_hidden_size=2,
        downsampling_ratios=ratios,
        upsampling_ratios=ratios,
        decoder_hidden_size=32 * 2 ** (len(ratios) - 4),
        hidden_size=16,
    )


def make_xcodec() -> XcodecModel:
    """8 codebooks at 16 kHz."""
    acoustic = acoustic_config([8, 5, 4, 2])
    return make_audible(XcodecModel(XcodecConfig(acoustic_model_config=acoustic, semantic_model_config=HUBERT)))


def make_higgs() -> HiggsModel:
    """8 codebooks at 24 kHz."""
    config = HiggsAudioV2TokenizerConfig(
        acoustic_model_config=acoustic_config([8, 5, 4, 2, 3]),
        semantic_model_config=HUBERT,
        target_bandwidths=[0.5, 1, 1.5, 2],
        codebook_dim=8,
    )
    return make_audible(HiggsModel(config))


def make_dac(sampling_rate: int) -> DacModel:
    """As published for 16, 24 and 44.1 kHz: 12, 32 and 9 codebooks."""
    config = DacConfig(
        encoder_hidden_size=2,
        downsampling_ratios=[2, 4, 8, 8] if sampling_rate == 44_100 else [2, 4, 5, 8],
        decoder_hidden_size=32,
        n_codebooks={16_000: 12, 24_000: 32, 44_100: 9}[sampling_rate],
        sampling_rate=sampling_rate,
    )
    return make_audible(DacModel(config))


MODELS = {
    "xcodec": make_xcodec,
    "higgs": make_higgs,
    "dac_16khz": lambda: make_dac(16_000),
    "dac_24khz": lambda: make_dac(24_000),
    "dac_44khz": lambda: make_dac(44_100),
}


def make_audible(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw weights so that each layer keeps the size of its input; the published initialisation dies away."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear | nn.Embedding):
            weight = module.weight
            fan_in = weight[0].numel() if not isinstance(module, nn.ConvTranspose1d) else 2 * weight.shape[0]
            nn.init.normal_(weight, std=0.6 / math.sqrt(fan_in))
            if isinstance(module, nn.Embedding):
                nn.init.normal_(weight)
    for name, buffer in model.named_buffers():
        if name.endswith("codebook.embed"):
            buffer.normal_()
    return model.eval().requires_grad_(False)


def save(model: PreTrainedModel, directory: Path) -> Path:
    """The checkpoint as it is published."""
    model.save_pretrained(directory)
    return directory
