"""`mimi`: Mimi in transformers format (24 kHz, 12.5 frames per second; Défossez et al., 2024).

codes ─► frames ─► upsample ×2 ─► transformer, 250 steps back ─► SEANet decoder ─► pcm
                   1 frame back    keys and values in the state    8 steps back, outputs in the state

transformers' own `decode` with past keys and values is not exact, because its convolutions have no state.

The streaming encoder encodes frames of several recordings as one batch. Its codes are the same as if each recording
were encoded on its own in one pass.

pcm ─► SEANet encoder ─► transformer ─► downsample ×2 ─► residual codebooks ─► codes
       last inputs of    keys and        last steps
       each convolution  values          (the first one repeated at first)

The encoder is causal, and a frame consists of two steps, so a bounded state is exact. The authors' own streaming is not
exact: once the transformer's window is full, its ring lacks a key in the first step of each frame.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel
from transformers.models.mimi.modeling_mimi import MimiConv1d, MimiTransformerModel

from stretto.codecs.base import Codec, CodecSpec, Stateful, Window
from stretto.codecs.encoded_stream import EncodedStream, encode_ready
from stretto.codecs.seanet import keep_lengths_on_host, shape_of
from stretto.codecs.streaming import prepare_products
from stretto.errors import CheckpointError
from stretto.weights.loading import codec_directory
from stretto.weights.pretrained import load_config, load_model


@dataclass(frozen=True, slots=True)
class KeyValueRing:
    """Key-value cache of B utterances as rings [B, layers, 2, heads, R, head_dim].

    Layers write to `slots` [B, n] in place.
    """

    rings: Tensor
    slots: Tensor

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, heads, n, head_dim] of a layer.

        Return all keys and values of that layer, [B, heads, R, head_dim] each.
        """
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
        """Process the next n steps and update the rings.

        Args:
            steps: Inputs, [B, n, H].
            first: Position of the first step of each utterance, [B].
            rings: Rings of keys and values, [B, layers, 2, heads, R, head_dim], updated in place.

        Returns:
            Outputs, [B, n, H].
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


STEPS = 2  # transformer steps per frame
MARKS = {"decoder.layers.0.conv.weight": "a codec of Mimi's kind"}
TRANSFORMERS = MimiConfig, MimiModel


class MimiCodec(nn.Module):
    """Mimi with an exact streaming decoder.

    The state [B, D] contains the transformer's key and value rings, then the last transformer outputs, which the
    SEANet decoder needs again.
    """

    def __init__(self, model: MimiModel) -> None:
        super().__init__()
        config = model.config
        check(config)
        self.model = model
        self.transformer = RingTransformer(model.decoder_transformer)
        self.ring_size = prod(self.transformer.shape)
        shape = shape_of(config)
        self.left_frames = -(-(shape.head.left + shape.tail.left) // STEPS)
        self.samples_per_step = shape.hop
        self.spec = CodecSpec(
            name="mimi",
            sample_rate=config.sampling_rate,
            samples_per_frame=shape.hop * STEPS,
            num_codebooks=config.num_quantizers,
            codebook_size=config.codebook_size,
            streaming=Stateful(left=self.left_frames),
            reads_rows=True,
        )

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n], to codes, int64 [K, T].

        The last frame may be shorter than the others.
        """
        if len(pcm) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = torch.from_numpy(np.asarray(pcm)).to(next(self.parameters()))
        codes = self.model.encode(samples[None, None], num_quantizers=self.spec.num_codebooks)[0]
        return codes[0].cpu().numpy()

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros, which stand for empty rings and silent outputs."""
        outputs = self.left_frames * STEPS * self.model.config.hidden_size
        return next(self.parameters()).new_zeros(batch, self.ring_size + outputs)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode frames [first, last); return the waveform [B, n] in [-1, 1] and the next state."""
        rows = window.rows
        state = window.state.clone() if rows is None else window.state.index_select(0, rows[0])
        rings, outputs = state.split([prod(self.transformer.shape), state.shape[1] - prod(self.transformer.shape)], 1)
        rings = rings.unflatten(1, self.transformer.shape)
        outputs = outputs.unflatten(1, (self.left_frames * STEPS, -1))
        steps = self._steps(window.codes.to(state.device), window.left)
        new = self.transformer.advance(steps, window.first.to(state.device) * STEPS, rings)
        with_context = torch.cat([outputs, new], 1)
        outputs.copy_(with_context[:, -outputs.shape[1] :])
        pcm = self._waveform(with_context[:, outputs.shape[1] - window.left * STEPS :], window.left * STEPS)
        if rows is None:
            return pcm.clamp(-1, 1), state
        window.state.index_copy_(0, rows[1], state)
        return pcm.clamp(-1, 1), window.state

    def _steps(self, codes: Tensor, left: int) -> Tensor:
        """Return the transformer inputs [B, 2 n, H] of the last n frames of codes [B, K, left + n]."""
        before = min(left, 1)
        frames = self.model.quantizer.decode(codes[:, :, left - before :])
        upsample = self.model.upsample
        assert upsample is not None, "there are two steps per frame"
        return upsample(frames)[:, :, before * STEPS :].transpose(1, 2)

    def _waveform(self, window: Tensor, left: int) -> Tensor:
        return self.model.decoder(window.transpose(1, 2))[:, 0, left * self.samples_per_step :]


def check(config: MimiConfig) -> None:
    """Raise CheckpointError if Mimi has look-ahead, non-zero padding, or an upsampling factor other than 2."""
    if not config.use_causal_conv or config.pad_mode != "constant":
        raise CheckpointError(
            f"mimi: expected use_causal_conv and pad_mode constant, got {config.use_causal_conv}, {config.pad_mode}"
        )
    if config.encodec_frame_rate != STEPS * config.frame_rate:
        raise CheckpointError(
            f"mimi: encodec_frame_rate must be twice {config.frame_rate}, got {config.encodec_frame_rate}"
        )


def load(directory: Path, device: str = "cpu") -> MimiCodec:
    """Load the codec of a published checkpoint.

    Raises:
        CheckpointError: If a file or tensor is missing, or does not fit the codec's architecture.
    """
    directory = codec_directory(directory)
    check(load_config(MimiConfig, directory))
    model, _ = load_model(MimiModel, directory)
    codec = prepare_products(MimiCodec(model).to(device))
    keep_lengths_on_host(codec)
    return codec


def published_shape(directory: Path) -> tuple[int, int]:
    """Return the number of codebooks and the codebook size of the codec published in `directory`."""
    config = load_config(MimiConfig, directory)
    return config.num_quantizers, config.codebook_size


@dataclass
class _Paddings:
    """Replacement for transformers' padding cache: left contexts as views of the state, updated in place.

    Attributes:
        contexts: Last inputs of each convolution, [B, C, left] each; left may be 0.
        is_first: True for recordings whose first frame is being encoded, bool [B, 1, 1].
        repeated: Index of the convolution that repeats its first input as context at the beginning.
    """

    contexts: list[Tensor]
    is_first: Tensor
    repeated: int

    def update(self, hidden: Tensor, layer_idx: int) -> Tensor:
        """Return a convolution's context [B, C, left], and store the last of `hidden` [B, C, n] for the next call."""
        context = self.contexts[layer_idx]
        before = context.clone()
        if layer_idx == self.repeated:
            before = torch.where(self.is_first, hidden[..., :1], before)
        context.copy_(torch.cat([before, hidden], 2)[..., hidden.shape[2] :])
        return before


def require_mimi(codec: Codec, family: str) -> MimiCodec:
    """Return `codec` if it is Mimi; otherwise raise CheckpointError with a message that contains `family`."""
    if not isinstance(codec, MimiCodec):
        raise CheckpointError(f"{family}: expected the codec mimi, got {codec.spec.name}")
    return codec


class MimiEncoder:
    """Streaming encoder; the caller owns the state of each recording.

    Attributes:
        samples_per_frame: Samples per frame.
        num_codebooks: K, the number of codebooks.
        state_size: D, the size of a recording's state.
    """

    def __init__(self, codec: MimiCodec) -> None:
        model = codec.model
        self._model = model
        self._device = next(codec.parameters()).device
        self.samples_per_frame = codec.spec.samples_per_frame
        self.num_codebooks = codec.spec.num_codebooks
        self._transformer = RingTransformer(model.encoder_transformer)
        assert model.downsample is not None, "there are two steps a frame"
        inner = [module for module in model.encoder.modules() if isinstance(module, MimiConv1d)]
        convolutions = sorted([*inner, model.downsample], key=_index)
        assert [_index(convolution) for convolution in convolutions] == list(range(len(convolutions)))
        self._shapes = [(convolution.in_channels, _left(convolution.conv)) for convolution in convolutions]
        self._sizes = [prod(shape) for shape in self._shapes]
        self._ring_size = prod(self._transformer.shape)
        self.state_size = self._ring_size + sum(self._sizes)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros, float [batch, D]: silence before each recording, and empty rings."""
        return next(self._model.parameters()).new_zeros(batch, self.state_size)

    @torch.inference_mode()
    def encode(self, pcm: Tensor, first: Tensor, state: Tensor) -> Tensor:
        """Encode the next frames of B recordings.

        Args:
            pcm: Samples of n whole frames, float [B, n * samples_per_frame].
            first: Number of frames already encoded, int64 [B].
            state: States, [B, D], updated in place.

        Returns:
            Codes, int64 [B, K, n].
        """
        rings, *contexts = state.split([self._ring_size, *self._sizes], 1)
        views = [context.unflatten(1, shape) for context, shape in zip(contexts, self._shapes, strict=True)]
        paddings = _Paddings(views, (first == 0)[:, None, None], len(views) - 1)
        steps = self._model.encoder(pcm[:, None], padding_cache=paddings).transpose(1, 2)
        steps = self._transformer.advance(steps, first * STEPS, rings.unflatten(1, self._transformer.shape))
        assert self._model.downsample is not None
        frames = self._model.downsample(steps.transpose(1, 2), padding_cache=paddings)
        return self._model.quantizer.encode(frames, self.num_codebooks).transpose(0, 1)

    def encode_all(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n], to codes, int64 [K, T]; the last frame is padded with silence."""
        stream = EncodedStream(self)
        stream.push(pcm)
        stream.complete_frame()
        encode_ready(self, [stream])
        return stream.pop_codes()


def _index(convolution: MimiConv1d) -> int:
    assert convolution.layer_idx is not None
    return convolution.layer_idx


def _left(convolution: nn.Conv1d) -> int:
    reach = (convolution.kernel_size[0] - 1) * convolution.dilation[0] + 1
    return reach - convolution.stride[0]
