"""`glm4_voice`: GLM-4-Voice and VITA-Audio decoder (22.05 kHz, 12.5 tokens per second; arXiv 2412.02612).

    tokens ─► conformer ─► regulator ─► μ ─► flow, given the previous mel ─► mel of the new block ─► HiFT ─► pcm

The mel of a block's last 5 tokens is faded into the next block. Norms and attention cover all frames, and the flow
starts from noise, so the samples of a block differ from those of a single decode of the whole utterance.

Blocks, fades and prompts follow the authors' `web_demo.py` and `flow_inference.py`, with two exceptions. Starting with
the third block, the authors' prompt repeats a frame, which shifts the prompt by one frame and loses 12 ms per block. If
the last block is complete, the mel held back at its end is decoded here, whereas the authors' code drops it.

`config.yaml` is HyperPyYAML, as published in https://huggingface.co/THUDM/glm-4-voice-decoder. It is read without
executing its tags: `!new:`, `!name:` and `!apply:` yield the mapping that follows, and `!ref <name>` a top-level value.
"""

import re
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from stretto.codecs.base import Blocks, CodecSpec, Window
from stretto.codecs.cosyvoice.flow import (
    EncoderLayer,
    EncoderShape,
    Estimator,
    EstimatorShape,
    Matching,
    SourceShape,
    TokenInput,
    VocoderShape,
    noise_tables,
    wave_of_distances,
)
from stretto.codecs.cosyvoice.vocoder import Vocoder
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.codecs.streaming import prepare_products
from stretto.errors import CheckpointError, InvalidRequest
from stretto.untrusted_files import UNPARSABLE, yaml_mapping
from stretto.weights.loading import load_strictly, read_tensors

PARTS = ("flow", "hift")


def read_part(directory: Path, file_name: str) -> dict[str, Tensor]:
    """Return the tensors of `<file_name>.pt` in float32, with weight norms multiplied out."""
    path = directory / f"{file_name}.pt"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    return multiply_weight_norm_out(read_tensors(path))


def load_part(module: nn.Module, directory: Path, file_name: str) -> None:
    """Load the tensors of one part of the release into a module; raise CheckpointError if they do not fit it."""
    load_strictly(module, read_part(directory, file_name), directory / f"{file_name}.pt")


CONFIG_FILE = "config.yaml"


@dataclass(frozen=True, slots=True)
class Glm4VoiceConfig:
    """Sizes in a checkpoint. `regulator` is the number of convolutions after length regulation."""

    codebook_size: int
    token_rate: Fraction
    token_width: int
    mels: int
    speaker: int
    regulator: int
    guidance: float
    encoder: EncoderShape
    estimator: EstimatorShape
    vocoder: VocoderShape

    @property
    def mels_per_token(self) -> Fraction:
        """Number of mel frames per token: 441/64 as published."""
        return Fraction(self.vocoder.sample_rate, self.vocoder.samples_per_mel) / self.token_rate

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Glm4VoiceConfig":
        """Return the sizes in `config.yaml`; raise KeyError or ValueError if a value is missing or unsupported."""
        flow = record["flow"]
        hift = record["hift"]
        matching = flow["decoder"]
        regulator = flow["length_regulator"]
        solver = matching["cfm_params"]["content"]
        _require(flow, output_size=80, output_type="mel")
        _require(solver, solver="euler", t_scheduler="cosine")
        _require(hift, in_channels=flow["output_size"])
        _require(regulator, channels=flow["output_size"])
        estimator = _estimator(matching["estimator"], flow["output_size"])
        return cls(
            codebook_size=flow["vocab_size"],
            token_rate=Fraction(str(flow["input_frame_rate"])),
            token_width=flow["input_size"],
            mels=flow["output_size"],
            speaker=flow["spk_embed_dim"],
            regulator=len(regulator["sampling_ratios"]),
            guidance=float(solver["inference_cfg_rate"]),
            encoder=_encoder(flow["encoder"]),
            estimator=estimator,
            vocoder=_vocoder(hift),
        )


def _encoder(encoder: dict[str, Any]) -> EncoderShape:
    _require(
        encoder,
        normalize_before=True,
        input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="block_rel_selfattn",
        use_cnn_module=False,
        macaron_style=False,
    )
    return EncoderShape(
        width=encoder["output_size"],
        heads=encoder["attention_heads"],
        inner=encoder["linear_units"],
        layers=encoder["num_blocks"],
        block=encoder["block_size"],
    )


def _estimator(estimator: dict[str, Any], mels: int) -> EstimatorShape:
    _require(estimator, in_channels=4 * mels, out_channels=mels, act_fn="gelu")
    return EstimatorShape(
        tuple(estimator["channels"]),
        estimator["attention_head_dim"],
        estimator["num_heads"],
        estimator["n_blocks"],
        estimator["num_mid_blocks"],
    )


def _vocoder(hift: dict[str, Any]) -> VocoderShape:
    predictor = hift["f0_predictor"]
    fourier = hift["istft_params"]
    _require(predictor, num_class=1, in_channels=hift["in_channels"])
    source = SourceShape(
        hift["nb_harmonics"],
        hift["nsf_alpha"],
        hift["nsf_sigma"],
        hift["nsf_voiced_threshold"],
        predictor["cond_channels"],
    )
    return VocoderShape(
        channels=hift["base_channels"],
        sample_rate=hift["sampling_rate"],
        rates=tuple(hift["upsample_rates"]),
        kernels=tuple(hift["upsample_kernel_sizes"]),
        residuals=_residuals(hift, "resblock"),
        source_residuals=_residuals(hift, "source_resblock"),
        fourier=fourier["n_fft"],
        hop=fourier["hop_len"],
        slope=hift["lrelu_slope"],
        limit=hift["audio_limit"],
        source=source,
    )


def _residuals(section: dict[str, Any], name: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    kernels = section[f"{name}_kernel_sizes"]
    dilations = section[f"{name}_dilation_sizes"]
    return tuple((kernel, tuple(sizes)) for kernel, sizes in zip(kernels, dilations, strict=True))


def _require(section: dict[str, Any], **values: Any) -> None:
    """Raise ValueError if a value in the record differs from the one that this decoder assumes."""
    odd = {name: section.get(name) for name, value in values.items() if section.get(name) != value}
    if odd:
        raise ValueError(f"expected { ({name: values[name] for name in odd}) }, got {odd}")


class _Loader(yaml.SafeLoader):
    """YAML loader that yields mappings in place of Python objects."""


def _plain(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return None


def _reference(loader: _Loader, node: yaml.Node) -> str:
    return f"!ref {node.value}"


for tag in ("!new:", "!name:", "!apply:"):
    _Loader.add_multi_constructor(tag, _plain)
_Loader.add_constructor("!ref", _reference)


def _resolved(value: Any, names: dict[str, Any]) -> Any:
    """Return the value with each `!ref <name>` replaced by the value of that name."""
    if isinstance(value, dict):
        return {key: _resolved(member, names) for key, member in value.items()}
    if isinstance(value, list):
        return [_resolved(member, names) for member in value]
    reference = re.fullmatch(r"!ref <(\w+)>", value) if isinstance(value, str) else None
    return names[reference[1]] if reference else value


def read_hyperpyyaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a HyperPyYAML file as plain data, or raise CheckpointError."""
    record = yaml_mapping(path, _Loader)
    try:
        resolved = _resolved(record, record)
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: {error!r}") from error
    assert isinstance(resolved, dict)
    return resolved


def read_config(directory: Path) -> Glm4VoiceConfig:
    """Return the sizes in `config.yaml`; raise CheckpointError if it is missing or belongs to another decoder."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        return Glm4VoiceConfig.from_record(read_hyperpyyaml(path))
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: {error!r}") from error


class BlockConformer(nn.Module):
    """Conformer with block-limited attention over token vectors: [B, T, E] -> [B, T, H]."""

    def __init__(self, token_width: int, shape: EncoderShape) -> None:
        super().__init__()
        self.embed = TokenInput(token_width, shape.width)
        self.encoders = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.after_norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        distances = wave_of_distances(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for layer in self.encoders:
            x = layer(x, distances)
        return self.after_norm(x)


class LengthRegulator(nn.Module):
    """Length regulator that repeats and smooths token vectors [B, T, M] to [B, M, frames]."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        model: list[nn.Module] = []
        for _ in range(layers):
            model += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*model, nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.model(F.interpolate(x.transpose(1, 2).contiguous(), size=frames, mode="nearest"))


@dataclass(frozen=True, slots=True)
class BlockMemory:
    """State of B utterances between two blocks. Parts shorter than their capacity are right-aligned.

    Attributes:
        mel: Mel frames that are already decoded, [B, M, n].
        overlap: Mel frames to be faded into the next block, [B, M, o].
        source: Excitation at the end of the decoded part, [B, s].
        pending: Decoded samples that have not been returned yet, [B, p].
    """

    mel: Tensor
    overlap: Tensor
    source: Tensor
    pending: Tensor

    def flat(self, room: "Room") -> Tensor:
        """Return the state [B, room.size], with zeros in front of parts shorter than their capacity."""
        parts = [self.mel, self.overlap, self.source, self.pending]
        fitted = [_fitted(tensor, shape[-1]).flatten(1) for tensor, shape in zip(parts, room.shapes, strict=True)]
        state = fitted[0].new_empty(len(fitted[0]), room.size)
        for target, tensor in zip(state.split([tensor.shape[1] for tensor in fitted], 1), fitted, strict=True):
            target.copy_(tensor)
        return state


def _fitted(tensor: Tensor, length: int) -> Tensor:
    return F.pad(tensor, (max(0, length - tensor.shape[-1]), 0))[..., max(0, tensor.shape[-1] - length) :]


@dataclass(frozen=True, slots=True)
class Room:
    """Capacity of each part of a `BlockMemory`, as shapes without the batch dimension."""

    mel: tuple[int, int]
    overlap: tuple[int, int]
    source: tuple[int]
    pending: tuple[int]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return astuple(self)

    @property
    def size(self) -> int:
        """Number of elements in the state of one utterance."""
        return sum(prod(shape) for shape in self.shapes)

    def read(self, state: Tensor) -> BlockMemory:
        """Split a state [B, size] into the parts of a `BlockMemory`."""
        parts = state.split([prod(shape) for shape in self.shapes], 1)
        return BlockMemory(*(tensor.unflatten(1, shape) for tensor, shape in zip(parts, self.shapes, strict=True)))


class Flow(nn.Module):
    """Flow-matching decoder: tokens to mel, with tensors named as in the published `flow.pt`."""

    def __init__(self, config: Glm4VoiceConfig) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(config.codebook_size, config.token_width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mels)
        self.encoder = BlockConformer(config.token_width, config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mels)
        self.length_regulator = LengthRegulator(config.mels, config.regulator)
        self.decoder = Matching(Estimator(config.mels, config.estimator), 4 * config.mels, config.guidance)

    def goal(self, tokens: Tensor, frames: int) -> Tensor:
        """Return the condition μ [B, M, frames] for tokens [B, T]."""
        return self.length_regulator(self.encoder_proj(self.encoder(self.input_embedding(tokens))), frames)

    def forward(self, tokens: Tensor, noise: Tensor, prompt: Tensor) -> Tensor:
        """Return the mel frames of tokens, [B, M, frames].

        The speaker vector is zero, so only the bias of its projection remains.

        Args:
            tokens: Tokens, [B, T].
            noise: Initial value, [M, frames].
            prompt: Known mel frames at the beginning, [B, M, n].
        """
        goal = self.goal(tokens, noise.shape[1])
        known_mel = nn.functional.pad(prompt, (0, noise.shape[1] - prompt.shape[2]))
        speaker = self.spk_embed_affine_layer.bias[:, None].expand_as(goal)
        return self.decoder(noise.expand_as(goal), goal, speaker, known_mel)


BLOCKS = (25, 50, 100, 150, 200)  # tokens, as in web_demo.py
HISTORY = 512  # tokens (41 s); the VITA-Audio demo decodes as many in one call
OVERLAP = 5  # tokens, as in flow_inference.py
HEARD_RATE = 16_000  # Hz, input rate of `encoders/whisper_vq.py`


class Glm4VoiceCodec(nn.Module):
    """GLM-4-Voice decoder.

    The noise of a frame is determined by the frame's position in the input of its block. The same codes therefore give
    the same waveform for any chunking and batch.
    """

    fade: Tensor
    noise: Tensor
    source_noise: Tensor
    phases: Tensor

    def __init__(self, config: Glm4VoiceConfig, sizes: tuple[int, ...] = BLOCKS, history: int = HISTORY) -> None:
        super().__init__()
        self.config = config
        self.flow = Flow(config)
        self.hift = Vocoder(config.mels, config.vocoder)
        hop = config.vocoder.samples_per_mel
        self.rate = config.mels_per_token
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
            input_rate=HEARD_RATE,
        )
        self.room = Room(
            mel=(config.mels, self.mels(history) - self.overlap),
            overlap=(config.mels, self.overlap),
            source=(hop,),
            pending=(held * self.spec.samples_per_frame - (self.overlap + 1) * hop,),
        )
        self._register_tables(self.mels(history + max(sizes)), self.mels(max(sizes)) + self.overlap + 2)

    def _register_tables(self, flow_frames: int, vocoder_frames: int) -> None:
        tables = noise_tables(self.config.mels, self.config.vocoder, flow_frames, vocoder_frames)
        tables["fade"] = torch.from_numpy(np.hamming(2 * self.overlap))
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def mels(self, tokens: int) -> int:
        """Return the number of whole mel frames for a number of tokens."""
        return int(tokens * self.rate)

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Raise InvalidRequest, because this codec only decodes; see `encoders/whisper_vq.py`."""
        raise InvalidRequest("audio", f"no audio ({self.spec.name} can only decode)", "audio")

    def initial_state(self, batch: int) -> Tensor:
        return self.flow.encoder_proj.bias.new_zeros(batch, self.room.size)

    def report_progress(self, call: Callable[[], None]) -> None:
        self.flow.decoder.on_step = call

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Decode a window; at the end of an utterance, append less than one mel frame of silence."""
        codes = window.codes[:, 0].to(window.state.device)
        memory = self.room.read(window.state)
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
        """Return the number of samples that have been decoded but not yet returned at a block border."""
        if border == 0:
            return 0
        spoken = (self.mels(border) - self.overlap - 1) * self.config.vocoder.samples_per_mel
        return spoken - (border - self.blocks.right) * self.spec.samples_per_frame

    def _new_mel(self, codes: Tensor, memory: BlockMemory, done: int) -> Tensor:
        """Return the mel frames of codes [B, T] from token `done` on, faded into the overlap of the previous block."""
        start = self.blocks.first_needed(done)
        tokens = codes[:, start:]
        num_known = max(0, self.mels(done - start) - self.overlap)
        noise = self.noise[:, : self.mels(tokens.shape[1])].to(memory.mel.dtype)
        prompt = memory.mel[..., memory.mel.shape[2] - num_known :]
        mel = self.flow(tokens, noise, prompt)[..., num_known:]
        if done == 0:
            return mel
        rising, falling = self.fade.to(mel.dtype).split(self.overlap)
        begin = mel[..., : self.overlap] * rising + memory.overlap * falling
        return torch.cat([begin, mel[..., self.overlap :]], 2)

    def _speak(self, memory: BlockMemory, mel: Tensor, goes_on: bool) -> BlockMemory:
        """Decode a block of mel frames except its end, and return the next state. `goes_on` is False at the start."""
        spoken = mel[..., : -self.overlap]
        overlap = mel[..., -self.overlap :]
        pcm, source = self._voice(memory, spoken, goes_on)
        hop = self.config.vocoder.samples_per_mel
        return BlockMemory(
            mel=torch.cat([memory.mel, spoken], 2)[..., -self.room.mel[1] :],
            overlap=overlap,
            source=source[:, -hop:],
            pending=torch.cat([memory.pending, pcm[:, :-hop]], 1),
        )

    def _end(self, memory: BlockMemory, codes: Tensor, done: int) -> BlockMemory:
        """Decode the utterance's end: the overlap held back earlier and codes [B, T] from token `done` to the last."""
        mel = self._new_mel(codes, memory, done) if done < codes.shape[1] else memory.overlap
        pcm, _ = self._voice(memory, mel, done > 0)
        return replace(memory, pending=torch.cat([memory.pending, pcm], 1))

    def _voice(self, memory: BlockMemory, mel: Tensor, goes_on: bool) -> tuple[Tensor, Tensor]:
        """Return samples and excitation [B, n] for new mel frames, computed together with the preceding frame."""
        if goes_on:
            mel = torch.cat([memory.mel[..., -1:], mel], 2)
        length = mel.shape[2] * self.config.vocoder.samples_per_mel
        source = self.hift.source(mel, self.phases.to(mel.dtype), self.source_noise[:, :length].to(mel.dtype))
        if goes_on:
            source = torch.cat([memory.source[:, None], source[..., memory.source.shape[1] :]], 2)
        return self.hift(mel, source), source[:, 0]


def load(directory: Path, device: str = "cpu") -> Glm4VoiceCodec:
    """Return the decoder published in `directory` or its subfolder `codec/`."""
    directory = directory / "codec" if (directory / "codec").is_dir() else directory
    codec = Glm4VoiceCodec(read_config(directory))
    load_part(codec.flow, directory, "flow")
    load_part(codec.hift, directory, "hift")
    return prepare_products(codec.eval().requires_grad_(False).to(device))


def published_shape(directory: Path) -> tuple[int, int]:
    """Return the number of codebooks and the codebook size of the codec published in `directory`."""
    return 1, read_config(directory).codebook_size
