"""`qwen3_12hz`: the Qwen3-TTS codec (24 kHz, 12.5 frames of 1 + 15 codes per second), published with each model.

The encoder is built from transformers' Mimi modules.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MimiConfig
from transformers.models.mimi.modeling_mimi import (
    MimiConv1d,
    MimiEncoder,
    MimiSplitResidualVectorQuantizer,
    MimiTransformerModel,
)

from stretto.codecs.base import CodecSpec, Stateful
from stretto.codecs.memory import CausalCodec, Memory, num_kept
from stretto.codecs.qwen3_12hz.decoder import Decoder, Qwen3CodecConfig, read_config
from stretto.codecs.seanet import keep_lengths_on_host
from stretto.codecs.streaming import prepare
from stretto.weights.loading import codec_directory, load_strictly, read_tensors

# downsampling from transformer steps to frames
KERNEL = 4
STRIDE = 2


class Encoder(nn.Module):
    """Audio encoder from samples to codes, built from transformers modules that are named as in MimiModel."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.encoder = MimiEncoder(config)
        self.encoder_transformer = MimiTransformerModel(config)
        width = config.hidden_size
        self.downsample = MimiConv1d(config, width, width, KERNEL, STRIDE, bias=False, pad_mode="replicate")
        self.quantizer = MimiSplitResidualVectorQuantizer(config)

    def forward(self, pcm: Tensor, num_codebooks: int) -> Tensor:
        """Encode samples [n] to codes [K, T]; the last frame may be shorter than the others."""
        steps = self.encoder(pcm[None, None]).transpose(1, 2)
        steps = self.encoder_transformer(steps, use_cache=False).last_hidden_state.transpose(1, 2)
        return self.quantizer.encode(self.downsample(steps), num_codebooks)[:, 0]


# Used only in training, to learn the codebook entries.
NOT_SERVED = {f"decoder.quantizer.{quantiser}.input_proj.weight" for quantiser in ("rvq_first", "rvq_rest")}


class Qwen3Codec(CausalCodec):
    """Qwen3-TTS codec. The state consists of the last inputs of every layer, so windows need no context frames."""

    def __init__(self, config: Qwen3CodecConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config.decoder)
        self.encoder = Encoder(config.encoder)
        self.spec = CodecSpec(
            name="qwen3_12hz",
            sample_rate=config.sample_rate,
            samples_per_frame=config.decoder.hop,
            num_codebooks=config.decoder.num_quantizers,
            codebook_size=config.decoder.codebook_size,
            streaming=Stateful(),
            reads_rows=True,
        )
        self.state_size = num_kept(self.decoder)

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n], to codes, int64 [K, T], T = ceil(n / samples_per_frame)."""
        if len(pcm) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = torch.from_numpy(np.asarray(pcm)).to(next(self.parameters()))
        return self.encoder(samples, self.spec.num_codebooks).cpu().numpy()

    def samples(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        pcm: Tensor = self.decoder(codes, first, memory)
        return pcm.clamp(-1, 1)


def load(directory: Path, device: str = "cpu") -> Qwen3Codec:
    """Load the codec of a published checkpoint."""
    directory = codec_directory(directory)
    codec = Qwen3Codec(read_config(directory))
    path = directory / "model.safetensors"
    served = {name: tensor for name, tensor in read_tensors(path).items() if name not in NOT_SERVED}
    load_strictly(codec, served, path)
    codec.eval().requires_grad_(False).to(device)
    keep_lengths_on_host(codec)
    prepare(codec.decoder)
    return codec


def published_shape(directory: Path) -> tuple[int, int]:
    """Return the number of codebooks and the codebook size of the codec published in `directory`."""
    decoder = read_config(directory).decoder
    return decoder.num_quantizers, decoder.codebook_size
