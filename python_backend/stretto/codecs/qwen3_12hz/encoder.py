"""Encoder of Qwen3-TTS' codec, from transformers' modules of Mimi."""

from torch import Tensor, nn
from transformers import MimiConfig
from transformers.models.mimi.modeling_mimi import (
    MimiConv1d,
    MimiEncoder,
    MimiSplitResidualVectorQuantizer,
    MimiTransformerModel,
)

KERNEL, STRIDE = 4, 2  # downsampling from transformer steps to frames


class Encoder(nn.Module):
    """Encoder: samples to codes, from transformers' modules under their names in MimiModel."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.encoder = MimiEncoder(config)
        self.encoder_transformer = MimiTransformerModel(config)
        width = config.hidden_size
        self.downsample = MimiConv1d(config, width, width, KERNEL, STRIDE, bias=False, pad_mode="replicate")
        self.quantizer = MimiSplitResidualVectorQuantizer(config)

    def forward(self, pcm: Tensor, num_codebooks: int) -> Tensor:
        """Return the codes [K, T] of samples [n]; the last frame may be partial."""
        steps = self.encoder(pcm[None, None]).transpose(1, 2)
        steps = self.encoder_transformer(steps, use_cache=False).last_hidden_state.transpose(1, 2)
        return self.quantizer.encode(self.downsample(steps), num_codebooks)[:, 0]
