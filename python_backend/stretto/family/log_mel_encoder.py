"""Audio encoder with log-mel input that several families share (AuT, `Qwen3OmniMoeAudioEncoder` in transformers)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from stretto.errors import CheckpointError
from stretto.family.conversion import integer
from stretto.family.log_mel import MelFormat
from stretto.untrusted_files import check_value, entry
from stretto.weights.loading import Part, Plan, shapes_of

# Hyperparameters in a published `audio_config`.
NUMBERS = (
    "num_mel_bins",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "d_model",
    "activation_function",
    "max_source_positions",
    "n_window",
    "n_window_infer",
    "conv_chunksize",
    "downsample_hidden_size",
    "output_dim",
)
CHUNKS = 32  # seconds of audio that are convolved at once, which take 0.4 GB in float32


def audio_tower(config: Mapping[str, Any]) -> Qwen3OmniMoeAudioEncoder:
    """Create the audio encoder that `audio_config` in config.json describes; its weights are loaded later."""
    numbers = {name: value for name, value in config.items() if name in NUMBERS}
    return Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig(**numbers)).eval()


def audio_adaptor(config: Mapping[str, Any], hidden_size: int) -> nn.Module:
    """Return an identity, for a model whose encoder's output has the backbone's width."""
    return nn.Identity()


def embed_audio(tower: Qwen3OmniMoeAudioEncoder, adaptor: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return rows for the backbone, [N, H], N = `MelFormat.num_rows(F)`, for a recording's log-mel frames [F, M].

    Lengths, which determine how the audio is split, stay on the host, so that there is no GPU synchronisation.
    """
    lengths = torch.tensor([len(features)])
    places = _places(tower.config, len(features), features.device)
    rows: torch.Tensor = adaptor(tower(features.T, feature_lens=lengths, **places).last_hidden_state)
    return rows


def _places(config: Qwen3OmniMoeAudioEncoderConfig, num_frames: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the valid rows of the padded chunks, and the boundaries of the attention windows.

    transformers always assumes 13 rows per chunk, which is wrong for most chunk lengths.
    """
    audio_format = MelFormat(config.num_mel_bins, config.n_window)
    chunk = 2 * config.n_window
    counts = [audio_format.num_rows(min(chunk, num_frames - first)) for first in range(0, num_frames, chunk)]
    longest = max(counts)
    total = sum(counts)
    valid = [index * longest + row for index, count in enumerate(counts) for row in range(count)]
    window = longest * (config.n_window_infer // chunk)
    ends = [*range(0, total, window), total]
    indices = torch.tensor(valid, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    return {"valid_indices": indices, "cu_seqlens": torch.tensor(ends, dtype=torch.int32)}


def tower_record(config: Mapping[str, Any], path: str, width: int) -> dict[str, Any]:
    """Return the encoder's hyperparameters for `audio_config`; raise CheckpointError if they are invalid.

    Args:
        config: config.json of a release, in which `path` with a dot at the end leads to them.
        width: The backbone's width, which must be that of the encoder's output.
    """
    record = {name: integer(config, f"{path}{name}") for name in NUMBERS if name != "activation_function"}
    activation = f"{path}activation_function"
    check_value(activation, entry(config, activation, "config.json"), "gelu")
    check_value(f"{path}output_dim", record["output_dim"], width)
    check_windows(record)
    record["conv_chunksize"] = min(record["conv_chunksize"], CHUNKS)
    return {**record, "activation_function": "gelu", "do_normalize": False}


def check_windows(record: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless attention windows of an `audio_config` are whole chunks of 2 * n_window frames."""
    half = record["n_window"]
    window = record["n_window_infer"]
    if half < 1 or window < 1 or window % (2 * half):
        raise CheckpointError(
            f"audio tower: n_window_infer must be a multiple of 2 * n_window, got {window} and {half}"
        )


def tower_plan(record: Mapping[str, Any], prefix: str) -> Plan:
    """Return the plan of the encoder's tensors for an `audio_config`; their published names begin with `prefix`."""
    numbers = {name: value for name, value in record.items() if name in NUMBERS}
    shapes = shapes_of(Qwen3OmniMoeAudioEncoder, Qwen3OmniMoeAudioEncoderConfig(**numbers))
    return {f"{prefix}{name}": Part(f"audio_tower.{name}", shape) for name, shape in shapes.items()}
