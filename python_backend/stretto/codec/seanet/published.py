"""transformers' SEANet models (Encodec, Mimi) prepared for serving: shape, plain weights, lengths on the host."""

from torch import nn
from torch.nn.utils import parametrize
from transformers import EncodecConfig, MimiConfig

from stretto.codec.seanet.shape import SeanetShape
from stretto.errors import CheckpointError

LENGTHS = ("stride", "kernel_size", "padding_total")


def shape_of(config: EncodecConfig | MimiConfig) -> SeanetShape:
    """Return the decoder's shape; raise CheckpointError if it is not mono or trims transposed convolutions unevenly."""
    if config.audio_channels != 1 or config.trim_right_ratio != 1.0:
        raise CheckpointError(
            f"audio_channels and trim_right_ratio must be 1, got {config.audio_channels}, {config.trim_right_ratio}"
        )
    return SeanetShape(
        ratios=tuple(config.upsampling_ratios or ()),
        kernel=config.kernel_size,
        last_kernel=config.last_kernel_size,
        residual_kernel=config.residual_kernel_size,
        num_residual_layers=config.num_residual_layers,
        dilation_base=config.dilation_growth_rate,
        is_causal=config.use_causal_conv,
    )


def multiply_weight_norm_out(model: nn.Module) -> None:
    """Replace each weight-norm pair (magnitude, direction) by the plain weight."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


def keep_lengths_on_host(model: nn.Module) -> None:
    """Move the sizes that convolutions keep in buffers back to the host, so that padding does not synchronise a GPU.

    Call this after the model has been moved to its device.
    """
    for module in model.modules():
        for name in LENGTHS:
            if name in module._buffers:
                setattr(module, name, module.get_buffer(name).cpu())
