"""`qwen3_omni`: code2wav, the decoder in the Qwen3-Omni release (24 kHz, 12.5 frames of 16 codes per second).

codes ─► mean of 16 entries ─► transformer ─► 2 × (↑2, ConvNeXt) ─► conv ─► 4 × (↑ 8, 5, 4, 3) ─► conv ─► pcm

Except for the codebooks, the layers are those of the Qwen3-TTS decoder. The transposed convolutions are trimmed at both
ends, so their output starts one step later (`late`), and layers mask the steps before the utterance's start. A frame is
complete once the next one has been decoded, and T frames give T · 1920 - 555 samples. Tensors are named as in
transformers' Qwen3OmniMoeCode2Wav. That class's `chunked_decode` drops samples where chunks meet, so its output differs
from a decode of the whole utterance.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from stretto.codecs.base import CodecSpec, Stateful
from stretto.codecs.causal import KERNEL, Block, ConvNext, Convolution, SnakeBeta, Upsampling, samples_of
from stretto.codecs.kernels.operators import runs_kernels
from stretto.codecs.memory import CausalCodec, Memory, num_kept
from stretto.codecs.qwen3_12hz.decoder import DecoderShape, Transformer
from stretto.codecs.streaming import prepare
from stretto.errors import CheckpointError, InvalidRequest
from stretto.weights.loading import CONFIG_FILE, codec_directory, load_strictly, read_tensors

MODEL_TYPE = "qwen3_omni_moe_code2wav"
SAMPLE_RATE = 24_000  # not in config.json; used by the model card's examples
INPUT_RATE = 16_000  # of the thinker's audio encoder


class Code2Wav(CausalCodec):
    """Code2wav, a codec without an encoder. The state consists of the last inputs of every layer."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        width = shape.hidden_size
        channels = shape.decoder_dim
        late = 0
        self.code_embedding = nn.Embedding(shape.num_quantizers * shape.codebook_size, width)
        self.pre_transformer = Transformer(shape)
        self.upsample = nn.ModuleList(
            nn.ModuleList([Upsampling(width, width, ratio, ratio), ConvNext(width)])
            for ratio in shape.upsampling_ratios
        )
        layers: list[nn.Module] = [Convolution(width, channels, KERNEL)]
        for rate in shape.upsample_rates:
            layers.append(Block(channels, rate, (late, (late + 1) * rate)))
            channels = channels // 2
            late = (late + 1) * rate
        last = Convolution(channels, 1, KERNEL)
        last.late = late
        self.decoder = nn.ModuleList([*layers, SnakeBeta(channels), last])
        self.spec = CodecSpec(
            name="qwen3_omni",
            sample_rate=SAMPLE_RATE,
            samples_per_frame=shape.hop,
            num_codebooks=shape.num_quantizers,
            codebook_size=shape.codebook_size,
            streaming=Stateful(right=1),
            reads_rows=True,
            tail_samples=late,
            input_rate=INPUT_RATE,
        )
        self.state_size = num_kept(self)

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Raise InvalidRequest, because the encoder is not published."""
        raise InvalidRequest("audio", f"no audio ({self.spec.name} can only decode)", "audio")

    def samples(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        pcm: Tensor = self(codes, first, memory)
        begin = self.spec.tail_samples
        stop = begin + self.spec.num_samples(codes.shape[2] - memory.right, memory.right)
        return pcm[:, begin:stop].clamp(-1, 1)

    def forward(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        """Decode codes [B, K, n] to samples [B, n · hop].

        The samples start `tail_samples` earlier than those that `decode` returns for the same frames.

        Args:
            first: Index of the first frame of each utterance, [B].
            memory: State before and after the window.
        """
        if runs_kernels(self.code_embedding.weight):
            latents = self._launched_latents(codes)
        else:
            starts = torch.arange(codes.shape[1], device=codes.device) * self.spec.codebook_size
            latents = self.code_embedding(codes + starts[:, None]).mean(1)
        x = self.pre_transformer(latents, first, memory).transpose(1, 2)
        return samples_of(x, memory, self.upsample, self.decoder)

    def _launched_latents(self, codes: Tensor) -> Tensor:
        """Return the means of the entries, [B, n, C], computed by a kernel."""
        num_books = codes.shape[1]
        size = self.spec.codebook_size
        entries = self.code_embedding.weight.unflatten(0, (-1, size))
        latents: Tensor = torch.ops.stretto.sum_entries(codes, entries, num_books, 1, size - 1, 1 / num_books)
        return latents


def read_config(directory: Path) -> DecoderShape:
    """Return the sizes in a folder's `config.json`; raise CheckpointError if it is missing or of another codec."""
    try:
        record, _ = PretrainedConfig.get_config_dict(str(directory))
        if record.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type must be {MODEL_TYPE}, got {record.get('model_type')!r}")
        if not isinstance(record.get("decoder_config"), dict):
            raise ValueError("decoder_config must be an object")
        return read_shape(record["decoder_config"])
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error


def read_shape(record: Mapping[str, Any]) -> DecoderShape:
    """Return the sizes in `code2wav_config`; raise ValueError if one is missing or unsupported."""
    width = record.get("hidden_size")
    heads = record.get("num_attention_heads")
    head_dim = width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None
    # Latents are as wide as the transformer, and codebook entries are not halved.
    derived = {"head_dim": record.get("head_dim", head_dim), "latent_dim": width, "codebook_dim": 2}
    return DecoderShape.from_record({**record, **derived})


def load(directory: Path, device: str = "cpu") -> Code2Wav:
    """Load the codec from its folder or a talker's checkpoint; raise CheckpointError if one is missing or invalid."""
    directory = codec_directory(directory)
    codec = Code2Wav(read_config(directory))
    path = directory / "model.safetensors"
    load_strictly(codec, read_tensors(path), path)
    codec.eval().requires_grad_(False).to(device)
    prepare(codec)
    return codec
