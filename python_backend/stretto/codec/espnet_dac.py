"""`espnet_dac`: the codec of OpusLM, called DAC by ESPnet: a SEANet with LSTM and a residual quantiser.

Reads a published directory: `config.yaml` and one `*.pth`, as packed by ESPnet (espnet2/gan_codec/dac/dac.py).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codec.base import CodecSpec, Window
from stretto.codec.espnet_dac_checkpoint import EspnetDacConfig, read_config, read_generator
from stretto.codec.seanet import decoder as seanet
from stretto.codec.seanet.stream import SeanetStream
from stretto.codec.strict_loading import load_strictly


class EuclideanCodebooks(nn.Module):
    """Residual quantiser with tables [K, V, D]; each codebook quantises the residual of the previous ones."""

    embed: Tensor

    def __init__(self, num_codebooks: int, codebook_size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("embed", torch.zeros(num_codebooks, codebook_size, width))

    def encode(self, latents: Tensor) -> Tensor:
        """Return the codes [K, T] of latents [D, T], each the nearest vector."""
        residual, codes = latents.T, []
        for table in self.embed:
            distance = table.square().sum(1) - 2 * residual @ table.T
            codes.append(distance.argmin(1))
            residual = residual - table[codes[-1]]
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the latents [B, D, T] of codes [B, K, T]."""
        books = torch.arange(codes.shape[1], device=codes.device)
        return self.embed[books[:, None], codes].sum(1).transpose(1, 2)


class EspnetDac(nn.Module):
    """ESPnet's DAC. Its state is the (h, c) of the decoder's LSTM."""

    def __init__(self, config: EspnetDacConfig) -> None:
        super().__init__()
        self.encoder = seanet.make_encoder(config.shape, config.widths)
        self.decoder = seanet.make_decoder(config.shape, config.widths)
        self.quantizer = EuclideanCodebooks(config.num_codebooks, config.codebook_size, config.widths.latent)
        recurrence = self.decoder[1]
        assert isinstance(recurrence, seanet.Recurrence)
        self.stream = SeanetStream(config.shape, self.decoder[0], recurrence.lstm, self.decoder[2:])
        self.spec = CodecSpec(
            name="espnet_dac",
            sample_rate=config.sample_rate,
            samples_per_frame=config.shape.hop,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            streaming=self.stream.streaming,
        )

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return the codes, int64 [K, T], of mono samples, float32 [n].

        A partial last frame is padded by reflection.
        """
        if len(pcm) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = torch.from_numpy(np.asarray(pcm)).to(self.quantizer.embed)
        codes = self.quantizer.encode(self.encoder(samples[None, None])[0])
        return codes[: self.spec.num_codebooks].cpu().numpy()

    def initial_state(self, batch: int) -> Tensor:
        return self.stream.initial_state(batch)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return the waveform [B, n] in [-1, 1] of the window's frames, and the state before the next window."""
        latents = self.quantizer.decode(window.codes.to(self.quantizer.embed.device))
        pcm, state = self.stream(latents, window.left, window.right, window.state)
        return pcm.clamp(-1, 1), state


def load(directory: Path, device: str = "cpu") -> EspnetDac:
    """Return the codec published in `directory` or its `codec/`; raise CheckpointError for mismatched files."""
    directory = directory / "codec" if (directory / "codec").is_dir() else directory
    codec = EspnetDac(read_config(directory))
    load_strictly(codec, read_generator(directory, codec.spec.num_codebooks), directory)
    return codec.eval().requires_grad_(False).to(device)
