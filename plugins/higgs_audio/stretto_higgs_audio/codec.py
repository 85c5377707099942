"""`higgs`: the Higgs Audio v2 codec, an X-codec with projected codebooks (24 kHz, 25 frames per second).

The class in transformers requires torchaudio even for decoding. The class here reads the same checkpoint with the same
configuration class, and is derived from transformers' X-codec.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HiggsAudioV2TokenizerConfig, XcodecModel
from transformers.models.xcodec.modeling_xcodec import XcodecVectorQuantization

from stretto.codecs.xcodec import SemanticCodec, load_semantic
from stretto.encoders.voice_spectra import resample_by_sinc
from stretto.weights.pretrained import load_config

RATES = (24_000, 16_000)  # sample rates of the audio and of the semantic model's input, in Hz
MARGIN = 160  # samples of silence on each side of HuBERT's input


class ProjectedQuantization(XcodecVectorQuantization):
    """Codebook in its own space, with projections from the latent space and back."""

    def __init__(self, config: HiggsAudioV2TokenizerConfig) -> None:
        super().__init__(config)
        self.project_in = nn.Linear(config.hidden_size, config.codebook_dim)
        self.project_out = nn.Linear(config.codebook_dim, config.hidden_size)

    def encode(self, hidden_states: Tensor) -> Tensor:
        """Encode hidden states [B, H, T] to codes [B, T]."""
        return self.codebook.encode(self.project_in(hidden_states.transpose(1, 2)))

    def decode(self, embed_ind: Tensor) -> Tensor:
        """Decode codes [B, T] to hidden states [B, H, T]."""
        return self.project_out(self.codebook.decode(embed_ind)).transpose(1, 2)


class HiggsModel(XcodecModel):
    """transformers' X-codec with projected codebooks, and a different sample rate for semantic features."""

    config_class = HiggsAudioV2TokenizerConfig
    _keys_to_ignore_on_load_unexpected = {"semantic_model.masked_spec_embed"}  # noqa: RUF012 (transformers reads it here)

    def __init__(self, config: HiggsAudioV2TokenizerConfig) -> None:
        # The size of the resampler's filters depends on the rates.
        rates = (config.sample_rate, config.semantic_sample_rate)
        if rates != RATES:
            raise ValueError(f"sample_rate and semantic_sample_rate: expected {RATES}, got {rates}")
        if (step := config.semantic_downsample_factor) < 1:
            raise ValueError(f"semantic_downsample_factor: expected at least 1, got {step}")
        super().__init__(config)
        self.quantizer.quantizers = nn.ModuleList(ProjectedQuantization(config) for _ in self.quantizer.quantizers)

    def _extract_semantic_features(self, input_values: Tensor) -> Tensor:
        resampled = resample_by_sinc(input_values[:, 0], self.config.sample_rate, self.config.semantic_sample_rate)
        hidden = self.semantic_model(F.pad(resampled, (MARGIN, MARGIN)), output_hidden_states=True).hidden_states
        return torch.stack(hidden, dim=1).mean(dim=1)[:, :: self.config.semantic_downsample_factor]


class HiggsCodec(SemanticCodec):
    """Higgs Audio v2 X-codec, which encodes recordings of any length without padding the last frame.

    `HiggsAudioV2Processor` calls its feature extractor with `padding=False`. There are then as many codes as
    semantic features. If the acoustic encoder would return a different number, `XcodecModel.encode` adds half a frame
    of silence on both sides of its input.
    """

    def fit(self, samples: Tensor) -> Tensor:
        """Return samples [n] unchanged, because the last frame is not padded."""
        return samples


def load(directory: Path, device: str = "cpu") -> SemanticCodec:
    """Load the codec of a published checkpoint."""
    return load_semantic("higgs", HiggsModel, directory, HiggsCodec).to(device)


def published_shape(directory: Path) -> tuple[int, int]:
    """Return the number of codebooks and the codebook size of the codec published in `directory`."""
    config = load_config(HiggsAudioV2TokenizerConfig, directory)
    return config.num_quantizers, config.codebook_size
