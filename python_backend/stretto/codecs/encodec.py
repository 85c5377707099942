"""`encodec`: Encodec in transformers format: 24 kHz (causal) and 32 kHz (MusicGen, with look-ahead)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel

from stretto.codecs.base import CodecSpec, Window
from stretto.codecs.seanet import SeanetStream, keep_lengths_on_host, multiply_weight_norm_out, shape_of
from stretto.errors import CheckpointError
from stretto.weights.loading import codec_directory
from stretto.weights.pretrained import load_config, load_model


class EncodecCodec(nn.Module):
    """Encodec, with the hidden and cell states of the decoder's LSTM as its streaming state.

    The codec has the codebooks for the checkpoint's highest bandwidth. A lower bandwidth uses only the first few.
    """

    def __init__(self, model: EncodecModel) -> None:
        super().__init__()
        config = model.config
        check(config)
        multiply_weight_norm_out(model)
        self.model = model
        head, recurrence, *tail = model.decoder.layers
        shape = shape_of(config)
        lstm = recurrence.lstm
        assert isinstance(lstm, nn.LSTM)
        self.stream = SeanetStream(shape, head, lstm, nn.Sequential(*tail))
        self.spec = CodecSpec(
            name="encodec",
            sample_rate=config.sampling_rate,
            samples_per_frame=shape.hop,
            num_codebooks=config.num_quantizers,
            codebook_size=config.codebook_size,
            streaming=self.stream.streaming,
        )

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n], to codes, int64 [K, T].

        The last frame may be shorter than the others.
        """
        if len(pcm) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = torch.from_numpy(np.asarray(pcm)).to(next(self.parameters()))
        codes = self.model.quantizer.encode(self.model.encoder(samples[None, None]))
        return codes[: self.spec.num_codebooks, 0].cpu().numpy()

    def initial_state(self, batch: int) -> Tensor:
        return self.stream.initial_state(batch)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode frames [first, last); return the waveform [B, n] in [-1, 1] and the next state."""
        codes = window.codes.to(window.state.device)
        latents = self.model.quantizer.decode(codes.transpose(0, 1))
        pcm, state = self.stream(latents, window.left, window.right, window.state)
        return pcm.clamp(-1, 1), state


def check(config: EncodecConfig) -> None:
    """Raise CheckpointError for the 48 kHz model, which cannot stream: it normalises and cross-fades whole seconds."""
    if config.normalize or config.chunk_length_s is not None or config.norm_type != "weight_norm":
        raise CheckpointError(
            "encodec: expected no normalize, no chunk_length_s and norm_type weight_norm (24 or 32 kHz model), got "
            f"{config.normalize}, {config.chunk_length_s} and {config.norm_type}"
        )


def load(directory: Path, device: str = "cpu") -> EncodecCodec:
    """Load the codec of a published checkpoint.

    Raises:
        CheckpointError: If a file or tensor is missing, or does not fit the codec's architecture.
    """
    directory = codec_directory(directory)
    check(load_config(EncodecConfig, directory))
    model, _ = load_model(EncodecModel, directory)
    codec = EncodecCodec(model).to(device)
    keep_lengths_on_host(codec)
    return codec
