"""Mimi's streaming encoder, which encodes frames of several recordings as one batch.

Its codes are the same as if each recording were encoded alone in one pass.

pcm ─► conv ─► 4 × (residual block, ↓ 4, 5, 6, 8) ─► conv ─► transformer ─► ÷2 ─► residual codebooks ─► codes

The convolutions keep their last inputs in the state, and the transformer its keys and values, in rings that are updated
in place, because the recordings of live sessions are encoded frame by frame. Before the first step of a recording, that
step is repeated once. The authors' own streaming is not exact: once the transformer's window is full, its ring lacks a
key in the first step of each frame.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor
from transformers.models.mimi.modeling_mimi import MimiTransformerModel

from stretto.codecs.causal import run
from stretto.codecs.encoded_stream import EncodedStream, encode_ready
from stretto.codecs.memory import Memory, num_kept
from stretto.codecs.mimi import STEPS, MimiCodec, causal


@dataclass(frozen=True, slots=True)
class KeyValueRing:
    """Key-value cache of B utterances: `rings` [B, layers, 2, heads, R, head_dim], written at `slots` [B, n]."""

    rings: Tensor
    slots: Tensor

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, heads, n, head_dim]; return all of the layer, [B, heads, R, head_dim] each."""
        rows = torch.arange(len(self.slots), device=self.slots.device)[:, None]
        for index, new in enumerate((keys, values)):
            self.rings[rows, layer, index, :, self.slots] = new.transpose(1, 2).to(self.rings.dtype)
        return self.rings[:, layer, 0], self.rings[:, layer, 1]


class RingTransformer:
    """Mimi's transformer, with the key-value cache in rings that the caller owns."""

    def __init__(self, transformer: MimiTransformerModel, block: int = 32) -> None:
        config = transformer.config
        self._transformer = transformer
        self._window = config.sliding_window
        self._block = block
        self.size = self._window - 1 + block
        assert config.head_dim is not None, "MimiConfig fills it in"
        self.shape = (config.num_hidden_layers, 2, config.num_key_value_heads, self.size, config.head_dim)

    def advance(self, steps: Tensor, first: Tensor, rings: Tensor) -> Tensor:
        """Return the outputs [B, n, H] of the next n steps [B, n, H], and update the rings.

        Args:
            first: Position of the first step of each utterance, [B].
            rings: Rings of keys and values, [B, layers, 2, heads, R, head_dim].
        """
        outputs = []
        for start in range(0, steps.shape[1], self._block):
            block = steps[:, start : start + self._block]
            positions = first[:, None] + torch.arange(start, start + block.shape[1], device=first.device)
            outputs.append(self._advance_block(block, positions, rings))
        return torch.cat(outputs, 1)

    def visible(self, positions: Tensor) -> Tensor:
        """Return the attention mask, bool [B, 1, n, R], for queries at positions [B, n] and keys in the ring."""
        slot = torch.arange(self.size, device=positions.device)
        newest = positions[:, -1:]
        held = newest - (newest - slot) % self.size  # [B, R]: step in each slot, negative if empty
        distance = positions[:, :, None] - held[:, None]
        return ((held[:, None] >= 0) & (distance >= 0) & (distance < self._window))[:, None]

    def _advance_block(self, hidden: Tensor, positions: Tensor, rings: Tensor) -> Tensor:
        rotation = self._transformer.rotary_emb(hidden, positions)
        ring = KeyValueRing(rings, positions % self.size)
        mask = self.visible(positions)
        for layer in self._transformer.layers:
            hidden = layer(hidden, attention_mask=mask, past_key_values=ring, position_embeddings=rotation)[0]
        return hidden


class MimiEncoder:
    """Streaming encoder; the caller owns the state of each recording."""

    def __init__(self, codec: MimiCodec) -> None:
        model = codec.model
        self._model = model
        self._device = next(codec.parameters()).device
        self.samples_per_frame = codec.spec.samples_per_frame
        self.num_codebooks = codec.spec.num_codebooks
        self._layers = [causal(layer) for layer in model.encoder.layers]
        self._transformer = RingTransformer(model.encoder_transformer)
        assert model.downsample is not None, "there are two steps a frame"
        self._downsample = causal(model.downsample)
        self._ring_size = prod(self._transformer.shape)
        self.state_size = self._ring_size + num_kept(*self._layers, self._downsample)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros, float [batch, D]: empty rings, and silence before each recording."""
        return next(self._model.parameters()).new_zeros(batch, self.state_size)

    @torch.inference_mode()
    def encode(self, pcm: Tensor, first: Tensor, state: Tensor) -> Tensor:
        rings, inputs = state.split([self._ring_size, self.state_size - self._ring_size], 1)
        memory = Memory(inputs, first, pcm.shape[1] // self.samples_per_frame)
        steps = run(self._layers, pcm[:, None], memory, in_parts=False).transpose(1, 2)
        steps = self._transformer.advance(steps, first * STEPS, rings.unflatten(1, self._transformer.shape))
        frames = self._downsample(steps.transpose(1, 2), memory)
        assert memory.is_complete, "every layer has stored its state"
        inputs.copy_(memory.after)
        return self._model.quantizer.encode(frames, self.num_codebooks).transpose(0, 1)

    def encode_all(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n], to codes, int64 [K, T]; the last frame is padded with silence."""
        stream = EncodedStream(self)
        stream.push(pcm)
        stream.complete_frame()
        encode_ready(self, [stream])
        return stream.pop_codes()
