"""Bagpiper's audio encoder, which comes from Qwen3-Omni, and the adaptor from its width to the backbone's width."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from stretto.families.bagpiper.family import MelFormat


def audio_tower(config: Mapping[str, Any]) -> Qwen3OmniMoeAudioEncoder:
    """Create the audio encoder that `audio_config` in config.json describes; its weights are loaded later."""
    return Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig(**config)).eval()


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> nn.Linear:
    """Create the projection of the encoder's output to the backbone's width; its weights are loaded later."""
    return nn.Linear(config["output_dim"], hidden_size)


def embed_audio(tower: Qwen3OmniMoeAudioEncoder, adaptor: nn.Linear, features: torch.Tensor) -> torch.Tensor:
    """Encode one audio input.

    Lengths, which determine how the audio is split, stay on the host, so that there is no GPU synchronisation.

    Args:
        tower: Audio encoder.
        adaptor: Projection to the backbone's width.
        features: Log-mel frames, [F, M].

    Returns:
        Rows for the backbone, [N, H]; N is `MelFormat.num_rows(F)`.
    """
    lengths = torch.tensor([len(features)])
    places = _places(tower.config, len(features), features.device)
    return adaptor(tower(features.T, feature_lens=lengths, **places).last_hidden_state)


def _places(config: Qwen3OmniMoeAudioEncoderConfig, num_frames: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the valid rows of the padded chunks, and the boundaries of the attention windows.

    transformers always assumes 13 rows per chunk, which is wrong for most chunk lengths.
    """
    audio_format = MelFormat(config.num_mel_bins, config.n_window)
    chunk = 2 * config.n_window
    counts = [audio_format.num_rows(min(chunk, num_frames - first)) for first in range(0, num_frames, chunk)]
    longest, total = max(counts), sum(counts)
    valid = [index * longest + row for index, count in enumerate(counts) for row in range(count)]
    window = longest * (config.n_window_infer // chunk)
    ends = [*range(0, total, window), total]
    indices = torch.tensor(valid, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    return {"valid_indices": indices, "cu_seqlens": torch.tensor(ends, dtype=torch.int32)}
