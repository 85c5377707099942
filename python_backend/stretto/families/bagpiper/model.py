"""Audio encoder of Bagpiper (Qwen3-Omni's), and the adaptor from its width to the backbone's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from stretto.families.bagpiper.family import MelFormat


def audio_tower(config: Mapping[str, Any]) -> Qwen3OmniMoeAudioEncoder:
    """Return the encoder described by `audio_config` of a checkpoint's config.json, without weights."""
    return Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig(**config)).eval()


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> nn.Linear:
    """Return the projection of the encoder's rows to the backbone's width."""
    return nn.Linear(config["output_dim"], hidden_size)


def embed_audio(tower: Qwen3OmniMoeAudioEncoder, adaptor: nn.Linear, features: torch.Tensor) -> torch.Tensor:
    """Return rows [N, H] for features [F, M] of one audio; N is `MelFormat.num_rows(F)`.

    Lengths, which determine how the audio is cut, stay on the host. On a GPU nothing waits for the device.
    """
    lengths = torch.tensor([len(features)])
    places = _places(tower.config, len(features), features.device)
    return adaptor(tower(features.T, feature_lens=lengths, **places).last_hidden_state)


def _places(config: Qwen3OmniMoeAudioEncoderConfig, num_frames: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the valid rows of the padded chunks, and the boundaries of the attention windows.

    transformers would compute them itself, but with 13 rows per chunk whatever the chunk's length.
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
