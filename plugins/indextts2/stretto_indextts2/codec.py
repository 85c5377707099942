"""`indextts2`: IndexTTS-2's acoustic decoder (22.05 kHz, 50.08 codes per second; arXiv 2506.21619).

    codes ─► GPT-2, once over the whole reply ─► latents ─► 3 linear layers ┐
       └───► codebook of the semantic codec ─────────────────────────────── + ─► flow ─► BigVGAN ─► pcm

The flow attends to all frames of an utterance, and its length is rounded over the whole of it, so no sample is
available before the last code has arrived. A code becomes 1.72 mel frames of 256 samples.

A voice is a recording, the text of the reply, and the rows with which the language model reads the recording and the
emotion: GPT-2 reads all of them again. The result equals that of the authors' `IndexTTS2.infer`, except that the noise
depends on the position of a frame. Modules and tensors are named as in https://huggingface.co/IndexTeam/IndexTTS-2.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Whole, Window
from stretto.codecs.cosyvoice.flow import SEEDS, gaussian
from stretto.codecs.cosyvoice.shapes import Shapes, count, shape_of
from stretto.codecs.recorded_voices import check_numbers
from stretto.codecs.streaming import prepare_products
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.untrusted_files import json_object
from stretto.weights.loading import load_strictly, read_tensors
from stretto_indextts2.family import FRAMES_PER_CODE, HOP, MAX_CODES, SAMPLE_RATE
from stretto_indextts2.flow import NUM_MELS, STYLE, Flow, FlowShape, LengthRegulator
from stretto_indextts2.latents import GptShape, Latents
from stretto_indextts2.vocoder import Vocoder

NAME = "indextts2"
MAX_VOICE_ROWS = 64  # twice those of the release
MAX_VOICE_TOKENS = 750  # semantic codes of 15 s
MAX_VOICE_FRAMES = 1292  # mel frames of 15 s
MIN_VOICE_FRAMES = 8  # so that the flow can reflect frames at both ends
HEADS = ("heads", "flow_heads")  # keys of the codec's config.json; no tensor has these sizes
MAX_HEADS = 256


def num_frames(num_codes: int) -> int:
    """Return the number of mel frames of an utterance."""
    return int(num_codes * FRAMES_PER_CODE)


class StretchedSpec(CodecSpec):
    """Constants of a codec without a whole number of samples per frame. `samples_per_frame` is rounded down."""

    __slots__ = ()

    def num_samples(self, frames: int, right: int) -> int:
        """Return the number of samples of a whole utterance."""
        return HOP * num_frames(frames)


@dataclass(frozen=True, slots=True)
class IndexTtsConfig:
    """Sizes in a checkpoint.

    Attributes:
        code_width: Width of a code's vector in the codebook.
        projections: Widths between the layers from latents to semantic vectors.
        vocoder_channels: Channels after the vocoder's first convolution.
    """

    gpt: GptShape
    flow: FlowShape
    codebook_size: int
    code_width: int
    projections: tuple[int, ...]
    vocoder_channels: int

    @classmethod
    def from_shapes(cls, shapes: Shapes, heads: int, flow_heads: int) -> "IndexTtsConfig":
        """Infer the sizes from the shapes of the tensors, which do not show the numbers of heads."""
        codebook_size, code_width = shape_of(shapes, "quantizer.codebook.weight", 2)
        names = [f"gpt_layer.{number}.weight" for number in range(count(shapes, "gpt_layer") - 1)]
        return cls(
            gpt=_gpt_shape(shapes, heads, codebook_size + 2),
            flow=_flow_shape(shapes, flow_heads),
            codebook_size=codebook_size,
            code_width=code_width,
            projections=tuple(shape_of(shapes, name, 2)[0] for name in names),
            vocoder_channels=shape_of(shapes, "vocoder.conv_pre.bias", 1)[0],
        )


def _gpt_shape(shapes: Shapes, heads: int, num_code_ids: int) -> GptShape:
    num_text_ids, width = shape_of(shapes, "latents.text_embedding.weight", 2)
    if width % heads:
        raise CheckpointError(f"heads: expected a divisor of {width}, got {heads}")
    return GptShape(
        width=width,
        layers=count(shapes, "latents.gpt.h"),
        heads=heads,
        num_text_ids=num_text_ids,
        num_text_positions=shape_of(shapes, "latents.text_pos_embedding.emb.weight", 2)[0],
        num_code_ids=num_code_ids,
        num_positions=shape_of(shapes, "latents.mel_pos_embedding.emb.weight", 2)[0],
    )


def _flow_shape(shapes: Shapes, heads: int) -> FlowShape:
    root = "flow.estimator"
    channels, semantic = shape_of(shapes, "length_regulator.content_in_proj.weight", 2)
    width = shape_of(shapes, f"{root}.cond_x_merge_linear.bias", 1)[0]
    if width % (2 * heads):  # rotary positions turn pairs of channels
        raise CheckpointError(f"flow_heads: expected a divisor of {width // 2}, got {heads}")
    return FlowShape(
        semantic=semantic,
        channels=channels,
        width=width,
        layers=count(shapes, f"{root}.transformer.layers"),
        heads=heads,
        inner=shape_of(shapes, f"{root}.transformer.layers.0.feed_forward.w1.weight", 2)[0],
        wave_layers=count(shapes, f"{root}.wavenet.in_layers"),
    )


@dataclass(frozen=True, slots=True)
class Voice:
    """Recording of a voice and text of a reply, on the codec's device.

    Attributes:
        tokens: Semantic codes of the recording, int64 [n].
        mel: Its mel spectrogram, [M, F].
        style: Style vector, [E].
        text: Ids of the text, int64 [T].
        rows: Rows of the recording and the emotion, [R, H].
    """

    tokens: Tensor
    mel: Tensor
    style: Tensor
    text: Tensor
    rows: Tensor


class IndexTtsCodec(nn.Module):
    """IndexTTS-2's decoder, which decodes utterances one at a time, each as a whole.

    An utterance's state, float32 [1] on the host, is the number of its voice; number 0 is a voice of silence.
    """

    noise: Tensor

    def __init__(self, config: IndexTtsConfig) -> None:
        super().__init__()
        self.config = config
        semantic = config.flow.semantic
        self.latents = Latents(config.gpt)
        widths = itertools.pairwise((config.gpt.width, *config.projections, semantic))
        self.gpt_layer = nn.Sequential(*(nn.Linear(inputs, outputs) for inputs, outputs in widths))
        self.quantizer = nn.ModuleDict(
            {
                "codebook": nn.Embedding(config.codebook_size, config.code_width),
                "out_project": nn.Linear(config.code_width, semantic),
            }
        )
        self.length_regulator = LengthRegulator(config.flow)
        self.flow = Flow(config.flow)
        self.vocoder = Vocoder(NUM_MELS, config.vocoder_channels)
        longest = min(MAX_CODES, config.gpt.num_positions)
        self.spec = StretchedSpec(
            name=NAME,
            sample_rate=SAMPLE_RATE,
            samples_per_frame=int(HOP * FRAMES_PER_CODE),
            num_codebooks=1,
            codebook_size=config.codebook_size,
            streaming=Whole(longest),
            reads_on_host=True,
        )
        self.voices = dict[int, Voice]()
        self.on_step: Callable[[], None] = lambda: None
        self.register_buffer("noise", self.drawn_noise(), persistent=False)

    def drawn_noise(self) -> Tensor:
        """Return the initial value of the flow for the longest utterance, [M, F]."""
        return gaussian(num_frames(self.spec.start_frames), NUM_MELS, SEEDS["flow"])

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros, [B, 1], on the host: the voice of silence."""
        return torch.zeros(batch, 1)

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Raise InvalidRequest, because this codec only decodes."""
        raise InvalidRequest("audio", f"no audio ({self.spec.name} can only decode)", "audio")

    def report_progress(self, call: Callable[[], None]) -> None:
        """Make `decode` call `call` after each layer of GPT-2, step of the flow and residual block of the vocoder."""
        self.on_step = call

    def add_voice(self, tokens: np.ndarray, mel: np.ndarray, x_vector: np.ndarray, *prompt: np.ndarray) -> int:
        """Add the voice of a recording with the text of a reply; return its number, or raise InvalidRequest.

        Args:
            tokens: Semantic codes of the recording, int32 [n].
            mel: Its mel spectrogram, float32 [F, M].
            x_vector: Style vector, float32 [E].
            prompt: Ids of the text, int32 [T], and rows of the recording and the emotion, float32 [R · H].
        """
        gpt = self.config.gpt
        if len(prompt) != 2:
            raise InvalidRequest("chunk.sound.text", "the text of the reply and the rows of its voice", "neither")
        text, rows = prompt
        _check_ids("tokens", tokens, MAX_VOICE_TOKENS, self.config.codebook_size)
        _check_ids("text", text, gpt.num_text_positions - 2, gpt.num_text_ids)
        if not MIN_VOICE_FRAMES <= len(mel) <= MAX_VOICE_FRAMES:
            expected = f"{MIN_VOICE_FRAMES} to {MAX_VOICE_FRAMES} frames"
            raise InvalidRequest("chunk.sound.mel", expected, f"{len(mel)} frames")
        check_numbers("mel", mel, (len(mel), NUM_MELS))
        check_numbers("x_vector", x_vector, (STYLE,))
        num_rows = len(rows) // gpt.width
        if not 1 <= num_rows <= MAX_VOICE_ROWS:
            raise InvalidRequest("chunk.sound.rows", f"1 to {MAX_VOICE_ROWS} rows", f"{num_rows} rows")
        check_numbers("rows", rows, (num_rows * gpt.width,))
        number = next(free for free in itertools.count(1) if free not in self.voices)
        self.voices[number] = self._voice_from_arrays(tokens, mel, x_vector, text, rows.reshape(num_rows, -1))
        return number

    def remove_voice(self, number: int) -> None:
        del self.voices[number]

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        codes = window.codes[:, 0].to(self.noise.device, non_blocking=True)
        voices = [self._voice_with_number(int(number)) for number in window.state[:, 0].tolist()]
        pcm = [self.speak(row, voice) for row, voice in zip(codes, voices, strict=True)]
        return torch.stack(pcm), window.state

    def speak(self, codes: Tensor, voice: Voice) -> Tensor:
        """Decode the codes [n] of an utterance to samples."""
        return self.vocoder(self.mel(codes, voice), self.on_step)[0]

    def mel(self, codes: Tensor, voice: Voice) -> Tensor:
        """Return the mel spectrogram [1, M, F] of the codes [n] of an utterance."""
        latents = self.latents(voice.rows, voice.text, codes, self.on_step)
        frames = num_frames(len(codes))
        spoken = self.length_regulator((self.semantic(codes) + self.gpt_layer(latents))[None], frames)
        recorded = self.length_regulator(self.semantic(voice.tokens)[None], voice.mel.shape[1])
        noise = self.noise[None, :, :frames].to(voice.mel.dtype)
        return self.flow(noise, torch.cat([recorded, spoken], 1), voice.mel[None], voice.style[None], self.on_step)

    def semantic(self, codes: Tensor) -> Tensor:
        """Return the semantic vectors [n, S] of codes [n]."""
        return self.quantizer["out_project"](self.quantizer["codebook"](codes))

    def _voice_with_number(self, number: int) -> Voice:
        if number:
            return self.voices[number]
        first = np.zeros(1, np.int32)
        return self._voice_from_arrays(
            tokens=first,
            mel=np.zeros((MIN_VOICE_FRAMES, NUM_MELS), np.float32),
            style=np.zeros(STYLE, np.float32),
            text=first,
            rows=np.zeros((1, self.config.gpt.width), np.float32),
        )

    def _voice_from_arrays(
        self, tokens: np.ndarray, mel: np.ndarray, style: np.ndarray, text: np.ndarray, rows: np.ndarray
    ) -> Voice:
        weight = self.length_regulator.content_in_proj.weight

        def numbers(values: np.ndarray) -> Tensor:
            return torch.tensor(values, dtype=weight.dtype, device=weight.device)

        def ids(values: np.ndarray) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=weight.device)

        return Voice(ids(tokens), numbers(mel.T), numbers(style), ids(text), numbers(rows))


def _check_ids(name: str, ids: np.ndarray, most: int, limit: int) -> None:
    """Raise InvalidRequest unless there are 1 to `most` ids in [0, limit)."""
    if not 1 <= len(ids) <= most:
        raise InvalidRequest(f"chunk.sound.{name}", f"1 to {most} ids", f"{len(ids)} ids")
    if not 0 <= ids.min() <= ids.max() < limit:
        raise InvalidRequest(f"chunk.sound.{name}", f"ids in [0, {limit})", f"[{ids.min()}, {ids.max()}]")


def load(directory: Path, device: str = "cpu") -> IndexTtsCodec:
    """Load the codec from a converted `codec/` folder."""
    folder = directory / "codec"
    path = folder / "model.safetensors"
    heads = read_heads(folder / "config.json")
    tensors = read_tensors(path)
    config = IndexTtsConfig.from_shapes({name: tensor.shape for name, tensor in tensors.items()}, *heads)
    with torch.device("meta"):
        codec = IndexTtsCodec(config)
    load_strictly(codec, tensors, path, assign=True)
    codec.noise = codec.drawn_noise()
    return prepare_products(codec.eval().requires_grad_(False).to(device))


def read_heads(path: Path) -> list[int]:
    """Return the numbers of attention heads in the codec's config; raise CheckpointError if one is out of range."""
    record = json_object(path)
    for key in HEADS:
        heads: Any = record.get(key)
        if type(heads) is not int or not 1 <= heads <= MAX_HEADS:
            raise CheckpointError(f"{path}: {key}: expected an integer in [1, {MAX_HEADS}], got {shown(heads)}")
    return [record[key] for key in HEADS]
