"""Voices of Chatterbox: rows of T3's prompt, computed from a voice file or a recording, and recordings for S3Gen.

    recording 24 kHz ─► 16 kHz ─► voice encoder ─► x-vector ─► 1 row
                         └► the first 6 s ─► S3 tokens ─► perceiver ─► 32 rows
                    └► the first 10 s ─► S3 tokens, mel and x-vector for S3Gen (`Sound`)
                                             exaggeration ─► 1 row

The steps and constants are those of `ChatterboxTTS.prepare_conditionals`, `VoiceEncoder` and `T3CondEnc` in
https://github.com/resemble-ai/chatterbox. Both 16 kHz signals are resampled in different ways, as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.encoders.s3gen import (
    MEL_RATE,
    NUM_TOKENS,
    TOKEN_RATE_HZ,
    CamPlusPlus,
    S3Tokenizer,
    mel_filters,
    mel_spectrogram,
    power_spectrum,
    resample_by_sinc,
)
from stretto.errors import CheckpointError, InvalidRequest
from stretto.records.chunk import Sound
from stretto.weights.loading import load_strictly, read_tensors

FOLDER = "hearing"  # folder of a checkpoint
SPEECH, SPEECH_POSITIONS = "speech_emb.weight", "speech_pos_emb.emb.weight"
CONDITIONS, PERCEIVER = "cond_enc.", "cond_enc.perceiver."
TOKENIZER, SPEAKER, VOICE_ENCODER = "tokenizer.", "speaker_encoder.", "ve."  # prefixes in the file
# Published tensors that are computed, or used in training only.
UNUSED = ("tokenizer._mel_filters", "tokenizer.window", "ve.similarity_weight", "ve.similarity_bias")
COUNTERS = ".num_batches_tracked"
NUM_HEADS = 4  # attention heads of the perceiver
MAX_CODES = 150  # tokens for T3
CODES_S, SOUND_S, MIN_S = 6, 10, 0.5  # seconds for T3's tokens, for S3Gen, and the shortest recording
QUIET = 1e-4  # magnitude below which a recording is silent
FRAMES_PER_TOKEN = 2  # mel frames

TRIM_FRAME, TRIM_HOP, TRIM_DB = 2048, 512, 20.0
FOURIER, HOP, BANDS, WIDTH, NUM_LAYERS = 400, 160, 40, 256, 3
WINDOW, STEP, LEAST_REST = 160, 77, 45  # frames of a window, from one to the next, and of the last one's rest


def trimmed(pcm: np.ndarray) -> np.ndarray:
    """Return samples [n] at 16 kHz without the frames at both ends that are 20 dB below the loudest one."""
    padded = np.pad(pcm, TRIM_FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, TRIM_FRAME)[::TRIM_HOP]
    power = np.maximum(np.square(frames, dtype=np.float32).mean(1), 1e-10)
    loud = np.flatnonzero(10 * np.log10(power / power.max()) > -TRIM_DB)
    return pcm[loud[0] * TRIM_HOP : (loud[-1] + 1) * TRIM_HOP]


class VoiceEncoder(nn.Module):
    """Encoder of a speaker for T3: an LSTM over windows of 1.6 s."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, WIDTH, NUM_LAYERS, batch_first=True)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def encode(self, pcm: Tensor) -> Tensor:
        """Return the x-vector, float32 [256] of length 1, of samples [n] at 16 kHz, n > 200."""
        bands = mel_filters(TOKEN_RATE_HZ, FOURIER, BANDS).to(pcm.device) @ power_spectrum(pcm, FOURIER, HOP)
        number, rest = divmod(max(bands.shape[1] - WINDOW + STEP, 0), STEP)
        number += number == 0 or rest >= LEAST_REST
        missing = max(0, WINDOW + STEP * (number - 1) - bands.shape[1])
        windows = F.pad(bands, (0, missing)).unfold(1, WINDOW, STEP)[:, :number]
        states = self.lstm(windows.permute(1, 2, 0))[1][0][-1]
        parts = F.relu(self.proj(states))
        mean = (parts / parts.norm(dim=1, keepdim=True)).mean(0)
        return mean / mean.norm()


def voice_rows(tensors: Mapping[str, Tensor], speaker: Tensor, codes: Tensor) -> Tensor:
    """Compute the embedding rows of a voice except the last one, float32 [n - 1, H], as in `T3CondEnc`.

    Args:
        tensors: T3's tensors by published name, float32: `cond_enc.`, and the tables of speech and its positions.
        speaker: x-vector of the voice encoder, [256].
        codes: Tokens of the recording, int64 [t].
    """
    weight, bias = (tensors[f"{CONDITIONS}spkr_enc.{part}"] for part in ("weight", "bias"))
    speech_rows = tensors[SPEECH][codes] + tensors[SPEECH_POSITIONS][: len(codes)]
    before = _attend(tensors, tensors[f"{PERCEIVER}pre_attention_query"][0], speech_rows)
    return torch.cat([F.linear(speaker[None], weight, bias), _attend(tensors, before, before)])


def emotion_row(tensors: Mapping[str, Tensor], exaggeration: Tensor) -> Tensor:
    """Compute the last row of a voice, float32 [1, H], for an exaggeration [1]."""
    return exaggeration.view(1, 1) @ tensors[f"{CONDITIONS}emotion_adv_fc.weight"].T


def _attend(tensors: Mapping[str, Tensor], queries: Tensor, memory: Tensor) -> Tensor:
    """Return the output [n, H] of the perceiver's attention block for queries [n, H] and memory [t, H]."""

    def linear(name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, *(tensors[f"{PERCEIVER}attn.{name}.{part}"] for part in ("weight", "bias")))

    def heads(name: str, rows: Tensor) -> Tensor:
        weight, bias = (tensors[f"{PERCEIVER}attn.norm.{part}"] for part in ("weight", "bias"))
        normed = F.layer_norm(rows, rows.shape[1:], weight, bias)
        return linear(name, normed).view(len(rows), NUM_HEADS, -1).transpose(0, 1)

    made = F.scaled_dot_product_attention(heads("to_q", queries), heads("to_k", memory), heads("to_v", memory))
    return queries + linear("proj_out", made.transpose(0, 1).flatten(1))


@dataclass(frozen=True, slots=True, eq=False)
class RecordedVoice:
    """Voice of a recording.

    Attributes:
        rows: Embedding rows for T3 except the last one, float32 [n - 1, H].
        sound: Recording for S3Gen.
    """

    rows: np.ndarray
    sound: Sound

    def to_array(self) -> np.ndarray:
        """Return rows, tokens, mel and x-vector, one after the other, as float32 [N]. Tokens are below 2^24."""
        return np.concatenate([self.rows.ravel(), *(each.ravel().astype(np.float32) for each in self.sound.arrays())])

    @classmethod
    def from_array(cls, array: np.ndarray, rows_shape: tuple[int, int], num_mels: int, speaker: int) -> "RecordedVoice":
        """Return the voice in the result of `to_array`.

        Args:
            array: Result of `to_array`.
            rows_shape: Shape of the rows.
            num_mels: Number of mel bins.
            speaker: Width of the x-vector.
        """
        num_rows, width = rows_shape
        begin, end = num_rows * width, len(array) - speaker
        num_tokens = (end - begin) // (1 + FRAMES_PER_TOKEN * num_mels)
        tokens, mel = np.split(array[begin:end], [num_tokens])
        sound = Sound.from_arrays(tokens, mel.reshape(-1, num_mels), array[end:])
        return cls(array[:begin].reshape(rows_shape), sound)


class Hearing(nn.Module):
    """Networks that encode recordings, and the tensors that turn their results into rows.

    Args:
        width: Width of the tokenizer.
        num_layers: Number of its layers.
        speaker: Width of S3Gen's x-vector.
        num_mels: Number of bins of S3Gen's mel spectrogram.
    """

    def __init__(self, width: int, num_layers: int, speaker: int, num_mels: int):
        super().__init__()
        self.tokenizer, self.speaker_encoder = S3Tokenizer(width, num_layers), CamPlusPlus(speaker)
        self.ve, self.num_mels, self.speaker = VoiceEncoder(), num_mels, speaker
        self.condition: dict[str, Tensor] = {}

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording; `voice` reads the result.

        Args:
            pcm: Samples, float32 [n] at 24 kHz, at least 0.5 s.

        Returns:
            Array of `RecordedVoice.to_array`, float32 [N].

        Raises:
            InvalidRequest: The recording is silent, or almost.
        """
        resampled = soxr.resample(pcm, MEL_RATE, TOKEN_RATE_HZ)
        size = -(-len(pcm) * TOKEN_RATE_HZ // MEL_RATE)
        at16 = np.pad(resampled[:size], (0, max(0, size - len(resampled))))
        if np.abs(pcm).max() < QUIET:
            raise InvalidRequest("audio", "a recording of a voice", "silence")
        codes = self.tokenizer.encode(self._tensor(at16[: CODES_S * TOKEN_RATE_HZ]), MAX_CODES)
        speaker = self.ve.encode(self._tensor(trimmed(at16)))
        if not speaker.isfinite().all():
            raise InvalidRequest("audio", "a recording of a voice", "one that the voice encoder cannot represent")
        rows = voice_rows(self.condition, speaker, codes)
        return RecordedVoice(rows.cpu().numpy(), self.sound(pcm)).to_array()

    def voice(self, encoded: np.ndarray) -> RecordedVoice:
        """Return the voice in the result of `encode`."""
        _, num_queries, width = self.condition[f"{PERCEIVER}pre_attention_query"].shape
        return RecordedVoice.from_array(encoded, (1 + num_queries, width), self.num_mels, self.speaker)

    @torch.inference_mode()
    def sound(self, pcm: np.ndarray) -> Sound:
        """Return the first 10 s of a recording, float32 [n] at 24 kHz, as S3Gen needs it.

        Each token has two mel frames. In the authors' code, some recordings have one more frame; it is dropped.
        """
        at24 = self._tensor(pcm[: SOUND_S * MEL_RATE])
        mel, at16 = mel_spectrogram(at24, self.num_mels), resample_by_sinc(at24, MEL_RATE, TOKEN_RATE_HZ)
        tokens = self.tokenizer.encode(at16)[: len(mel) // FRAMES_PER_TOKEN]
        x_vector = self.speaker_encoder.encode(at16)
        mel = mel[: FRAMES_PER_TOKEN * len(tokens)]
        return Sound.from_arrays(*(each.cpu().numpy() for each in (tokens, mel, x_vector)))

    @torch.inference_mode()
    def emotion_row(self, exaggeration: float) -> np.ndarray:
        """Return the last row of a voice, float32 [1, H]."""
        return emotion_row(self.condition, torch.tensor([exaggeration], device=self._device)).cpu().numpy()

    @property
    def _device(self) -> torch.device:
        return self.ve.proj.weight.device

    def _tensor(self, pcm: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(pcm, np.float32)).to(self._device)


def hearing_of(tensors: Mapping[str, Tensor]) -> Hearing:
    """Return the networks with the sizes of published tensors; raise CheckpointError if one is missing."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layers = {name.split(".")[3] for name in shapes if name.startswith(f"{TOKENIZER}encoder.blocks.")}
    names = (f"{TOKENIZER}encoder.conv1.weight", f"{SPEAKER}xvector.dense.linear.weight")
    for name in names:
        if len(shapes.get(name, ())) != 3:
            raise CheckpointError(f"{name}: expected a tensor of 3 dimensions, got {shapes.get(name, 'none')}")
    width, speaker = (shapes[name][0] for name in names)
    if width % 64:
        raise CheckpointError(f"{names[0]}: expected a width that is a multiple of 64, got {width}")
    with torch.device("meta"):
        return Hearing(width, len(layers), speaker, num_mels=80)


def load_hearing(checkpoint: Path, num_rows: int, hidden_size: int, device: str = "cpu") -> Hearing:
    """Load the networks in `hearing/` of a checkpoint.

    Args:
        checkpoint: Folder of the checkpoint.
        num_rows: Number of rows of a voice.
        hidden_size: Width of T3.
        device: torch device.

    Raises:
        CheckpointError: Files or tensors are missing or do not match.
    """
    path = checkpoint / FOLDER / "model.safetensors"
    tensors = read_tensors(path)
    is_condition = lambda name: name.startswith((CONDITIONS, SPEECH, SPEECH_POSITIONS))  # noqa: E731
    hearing = hearing_of(tensors)
    networks = {name: tensor for name, tensor in tensors.items() if not is_condition(name)}
    load_strictly(hearing, networks, path, assign=True)
    hearing = hearing.eval().requires_grad_(False).to(device)
    hearing.condition = {name: tensor for name, tensor in tensors.items() if is_condition(name)}
    _check_condition(hearing, num_rows, hidden_size, path)
    hearing.condition = {name: tensor.to(device) for name, tensor in hearing.condition.items()}
    return hearing


def _check_condition(hearing: Hearing, num_rows: int, hidden_size: int, path: Path) -> None:
    """Raise CheckpointError if the tensors that make rows are missing or of other sizes than T3's."""
    codes = torch.full((MAX_CODES,), NUM_TOKENS - 1)
    try:
        rows = voice_rows(hearing.condition, torch.zeros(WIDTH), codes), emotion_row(hearing.condition, torch.zeros(1))
        made = torch.cat(rows)
    except (LookupError, RuntimeError) as error:
        raise CheckpointError(f"{path}: expected the tensors of a voice's rows, got {error!r}") from error
    if made.shape != (num_rows, hidden_size):
        raise CheckpointError(f"{path}: expected rows {[num_rows, hidden_size]} of a voice, got {list(made.shape)}")
