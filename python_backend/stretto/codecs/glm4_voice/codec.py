"""`glm4_voice`: decoder of GLM-4-Voice and VITA-Audio (22.05 kHz, 12.5 tokens per second; arXiv 2412.02612).

tokens of all blocks so far ─► flow, given the previous mel ─► mel of the new block ─► HiFT ─► pcm
                                                  └ its last 5 tokens' worth is faded into the next block's

Norms and attention cover all frames, and the flow starts from noise, so the samples of a block differ from those of one
decode of the whole. Blocks, fades and prompts are those of the authors' `web_demo.py` and `flow_inference.py`, with two
exceptions. The authors' prompt repeats a frame from the third block on, which shifts it by one and loses 12 ms per
block; ours does not. The mel held back at the end of a complete last block is decoded, not dropped.
"""

from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import Blocks, CodecSpec, Window
from stretto.codecs.cosyvoice.flow import noise_tables
from stretto.codecs.cosyvoice.vocoder import Vocoder
from stretto.codecs.glm4_voice.config import Glm4VoiceConfig, load_part, read_config
from stretto.codecs.glm4_voice.flow import Flow, Memory, Room
from stretto.errors import InvalidRequest

BLOCKS = (25, 50, 100, 150, 200)  # tokens, as in web_demo.py
HISTORY = 512  # tokens, 41 s, as decoded at once by VITA-Audio's demo
OVERLAP = 5  # tokens, as in flow_inference.py
HEARD_RATE = 16_000  # Hz, input rate of `tokenizer.py`


class Glm4VoiceCodec(nn.Module):
    """Decoder of GLM-4-Voice.

    Noise is fixed by a frame's position in its block's input. The same codes therefore give one waveform for any
    chunking and batch.
    """

    fade: Tensor
    noise: Tensor
    source_noise: Tensor
    phases: Tensor

    def __init__(self, config: Glm4VoiceConfig, sizes: tuple[int, ...] = BLOCKS, history: int = HISTORY) -> None:
        super().__init__()
        self.config = config
        self.flow, self.hift = Flow(config), Vocoder(config.mels, config.vocoder)
        hop, self.rate = config.vocoder.samples_per_mel, config.mels_per_token
        self.overlap = self.mels(OVERLAP)
        held = ceil((self.overlap + 2) / self.rate)
        self.blocks = Blocks(sizes, held, history, self.rate.denominator)
        self.spec = CodecSpec(
            name="glm4_voice",
            sample_rate=config.vocoder.sample_rate,
            samples_per_frame=int(self.rate * hop),
            num_codebooks=1,
            codebook_size=config.codebook_size,
            streaming=self.blocks,
            heard_rate=HEARD_RATE,
        )
        self.room = Room(
            mel=(config.mels, self.mels(history) - self.overlap),
            overlap=(config.mels, self.overlap),
            source=(hop,),
            pending=(held * self.spec.samples_per_frame - (self.overlap + 1) * hop,),
        )
        self._register_tables(self.mels(history + max(sizes)), self.mels(max(sizes)) + self.overlap + 2)

    def _register_tables(self, most_heard: int, most_spoken: int) -> None:
        """Register the noise for the largest block, and the weights of a fade."""
        tables = noise_tables(self.config.mels, self.config.vocoder, most_heard, most_spoken)
        tables["fade"] = torch.from_numpy(np.hamming(2 * self.overlap))
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def mels(self, tokens: int) -> int:
        """Return the number of whole mel frames in `tokens` tokens."""
        return int(tokens * self.rate)

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Raise InvalidRequest: this codec only decodes; see `tokenizer.py`."""
        raise InvalidRequest("audio", f"none, as {self.spec.name} only decodes", "audio")

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros: nothing has been decoded."""
        return self.flow.encoder_proj.bias.new_zeros(batch, self.room.size)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return samples [B, n] of the window's frames, and the state after its last block.

        The end of an utterance is padded with less than one mel frame of silence.
        """
        codes, memory = window.codes[:, 0].to(window.state.device), self.room.read(window.state)
        done = window.left + self.blocks.right if window.left else 0
        memory = replace(memory, pending=memory.pending[:, self.room.pending[0] - self._num_pending(done) :])
        while done + self.blocks.size_after(done) <= codes.shape[1]:
            border = done + self.blocks.size_after(done)
            memory = self._speak(memory, self._new_mel(codes[:, :border], memory, done), done > 0)
            done = border
        if window.right == 0:
            memory = self._end(memory, codes, done)
        wanted = self.spec.num_samples(codes.shape[1] - window.left - window.right, window.right)
        pcm = F.pad(memory.pending, (0, max(0, wanted - memory.pending.shape[1])))
        return pcm[:, :wanted], replace(memory, pending=pcm[:, wanted:]).flat(self.room)

    def _num_pending(self, border: int) -> int:
        """Return the number of samples decoded from frames that are incomplete at a border."""
        if border == 0:
            return 0
        spoken = (self.mels(border) - self.overlap - 1) * self.config.vocoder.samples_per_mel
        return spoken - (border - self.blocks.right) * self.spec.samples_per_frame

    def _new_mel(self, codes: Tensor, memory: Memory, done: int) -> Tensor:
        """Return the mel after the part already decoded (tokens before `done` of codes [B, T]), faded in."""
        start = self.blocks.heard_from(done)
        tokens, known = codes[:, start:], max(0, self.mels(done - start) - self.overlap)
        noise = self.noise[:, : self.mels(tokens.shape[1])].to(memory.mel.dtype)
        prompt = memory.mel[..., memory.mel.shape[2] - known :]
        mel = self.flow(tokens, noise, prompt)[..., known:]
        if done == 0:
            return mel
        rising, falling = self.fade.to(mel.dtype).split(self.overlap)
        begin = mel[..., : self.overlap] * rising + memory.overlap * falling
        return torch.cat([begin, mel[..., self.overlap :]], 2)

    def _speak(self, memory: Memory, mel: Tensor, goes_on: bool) -> Memory:
        """Return the memory after a complete block of `mel`, whose end is held back.

        Args:
            memory: Memory after the previous block.
            mel: Mel frames of the block.
            goes_on: True unless this is the first block.
        """
        spoken, overlap = mel[..., : -self.overlap], mel[..., -self.overlap :]
        pcm, source = self._voice(memory, spoken, goes_on)
        hop = self.config.vocoder.samples_per_mel
        return Memory(
            mel=torch.cat([memory.mel, spoken], 2)[..., -self.room.mel[1] :],
            overlap=overlap,
            source=source[:, -hop:],
            pending=torch.cat([memory.pending, pcm[:, :-hop]], 1),
        )

    def _end(self, memory: Memory, codes: Tensor, done: int) -> Memory:
        """Return the memory after the last codes [B, T]; those before `done` are decoded except for the held end."""
        mel = self._new_mel(codes, memory, done) if done < codes.shape[1] else memory.overlap
        pcm, _ = self._voice(memory, mel, done > 0)
        return replace(memory, pending=torch.cat([memory.pending, pcm], 1))

    def _voice(self, memory: Memory, mel: Tensor, goes_on: bool) -> tuple[Tensor, Tensor]:
        """Return samples and source [B, n] of new mel, computed with one preceding frame and its source."""
        if goes_on:
            mel = torch.cat([memory.mel[..., -1:], mel], 2)
        length = mel.shape[2] * self.config.vocoder.samples_per_mel
        source = self.hift.source(mel, self.phases.to(mel.dtype), self.source_noise[:, :length].to(mel.dtype))
        if goes_on:
            source = torch.cat([memory.source[:, None], source[..., memory.source.shape[1] :]], 2)
        return self.hift(mel, source), source[:, 0]


def load(directory: Path, device: str = "cpu") -> Glm4VoiceCodec:
    """Return the decoder published in `directory` or its `codec/`; raise CheckpointError for mismatched files."""
    directory = directory / "codec" if (directory / "codec").is_dir() else directory
    codec = Glm4VoiceCodec(read_config(directory))
    load_part(codec.flow, directory, "flow")
    load_part(codec.hift, directory, "hift")
    return codec.eval().requires_grad_(False).to(device)


def published_shape(directory: Path) -> tuple[int, int]:
    """Return the number of codebooks, and of codes in each, of the codec published in `directory`."""
    return 1, read_config(directory).codebook_size
