"""Recorded voices in codecs whose decoder is a flow."""

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec
from stretto.errors import InvalidRequest

FRAMES_PER_TOKEN = 2  # mel frames


class FlowVoice(nn.Module):
    """Voice as input to the flow: tokens [n], mel [M, 2 n] and x-vector [E] of a recording."""

    tokens: Tensor
    mel: Tensor
    speaker: Tensor

    def __init__(self, num_tokens: int, num_mels: int, speaker: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros(num_tokens, dtype=torch.int64))
        self.register_buffer("mel", torch.zeros(num_mels, FRAMES_PER_TOKEN * num_tokens))
        self.register_buffer("speaker", torch.zeros(speaker))


@dataclass(slots=True)
class VoiceTable:
    """Recorded voices by number.

    Attributes:
        most: Maximum number of tokens in a voice.
        step: The number of tokens in every voice is a multiple of `step`.
    """

    first: int
    num_codes: int
    num_mels: int
    speaker: int
    most: int
    step: int = 1
    voices: dict[int, FlowVoice] = field(default_factory=dict)

    def add(self, tokens: np.ndarray, mel: np.ndarray, x_vector: np.ndarray, device: torch.device) -> int:
        """Add the voice of a recording and return its number; raise InvalidRequest if an array does not fit.

        Args:
            tokens: Tokens of the recording, int32 [n].
            mel: Its mel spectrogram, float32 [2 n, M].
            x_vector: x-vector of the speaker, float32 [E].
        """
        size = len(tokens)
        within = range(self.step, self.most + 1, self.step)
        if size not in within:
            sizes = f"1 to {self.most}" if self.step == 1 else f"{self.step}, {2 * self.step}, … {within[-1]}"
            raise InvalidRequest("chunk.sound.tokens", f"{sizes} codes", f"{size} codes")
        if not 0 <= tokens.min() <= tokens.max() < self.num_codes:
            got = f"[{tokens.min()}, {tokens.max()}]"
            raise InvalidRequest("chunk.sound.tokens", f"codes in [0, {self.num_codes})", got)
        check_numbers("mel", mel, (FRAMES_PER_TOKEN * size, self.num_mels))
        check_numbers("x_vector", x_vector, (self.speaker,))
        voice = FlowVoice(size, self.num_mels, self.speaker)
        voice.tokens.copy_(torch.from_numpy(tokens.astype(np.int64)))
        voice.mel.copy_(torch.from_numpy(mel.T.copy()))
        voice.speaker.copy_(torch.from_numpy(x_vector.copy()))
        number = next(free for free in itertools.count(self.first) if free not in self.voices)
        self.voices[number] = voice.to(device)
        return number


def check_numbers(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise InvalidRequest unless an array of a recorded voice is finite and has this shape."""
    if values.shape != shape:
        raise InvalidRequest(f"chunk.sound.{name}", f"shape {list(shape)}", list(values.shape))
    if not np.isfinite(values).all():
        raise InvalidRequest(f"chunk.sound.{name}", "finite numbers", "NaN or infinity")


class RecordedVoiceCodec(nn.Module):
    """Base class of decode-only codecs that support recorded voices in addition to their own.

    Attributes:
        noise: Noise of the flow, on the codec's device.
    """

    spec: CodecSpec
    noise: Tensor
    recorded: VoiceTable

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Raise InvalidRequest, because this codec only decodes."""
        raise InvalidRequest("audio", f"no audio ({self.spec.name} can only decode)", "audio")

    def add_voice(self, tokens: np.ndarray, mel: np.ndarray, x_vector: np.ndarray, *prompt: np.ndarray) -> int:
        """Add the voice of a recording, and return its number; see `VoiceTable.add`."""
        if prompt:
            raise InvalidRequest("chunk.sound.text", "none, because this codec reads no text", f"{len(prompt[0])} ids")
        return self.recorded.add(tokens, mel, x_vector, self.noise.device)

    def remove_voice(self, number: int) -> None:
        del self.recorded.voices[number]
