"""Chatterbox voices: T3 prompt rows, computed from a voice file or a recording, and recordings for S3Gen.

    recording 24 kHz ─► 16 kHz ─► voice encoder ─► x-vector ─► 1 row
                         └► the first 6 s ─► S3 tokens ─► perceiver ─► 32 rows
                    └► the first 10 s ─► S3 tokens, mel and x-vector for S3Gen (`Sound`)
                                             exaggeration ─► 1 row

The steps and constants follow `ChatterboxTTS.prepare_conditionals`, `VoiceEncoder` and `T3CondEnc` in
https://github.com/resemble-ai/chatterbox. As in that code, the two 16 kHz signals are resampled in different ways.

For Turbo and Nano, a recording is first normalised to a loudness of -27 LUFS (ITU-R BS.1770-4). T3 then reads the S3
tokens of the first 15 s directly, and there is no emotion row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.encoders.cam_plus_plus import CamPlusPlus
from stretto.encoders.loudness import normalised
from stretto.encoders.voice_spectra import (
    MEL_RATE,
    TOKEN_RATE_HZ,
    mel_filters,
    mel_spectrogram,
    power_spectrum,
    resample_by_sinc,
)
from stretto.errors import CheckpointError, InvalidRequest
from stretto.records.chunk import Sound
from stretto.weights.loading import load_strictly, read_tensors
from stretto_chatterbox.hearing import NUM_TOKENS, S3Tokenizer

FOLDER = "hearing"  # folder in a checkpoint
SPEECH = "speech_emb.weight"
SPEECH_POSITIONS = "speech_pos_emb.emb.weight"
CONDITIONS = "cond_enc."
PERCEIVER = "cond_enc.perceiver."
# prefixes in the file
TOKENIZER = "tokenizer."
SPEAKER = "speaker_encoder."
VOICE_ENCODER = "ve."
# Published tensors that can be computed or are used only in training.
UNUSED = ("tokenizer._mel_filters", "tokenizer.window", "ve.similarity_weight", "ve.similarity_bias")
COUNTERS = ".num_batches_tracked"
NUM_HEADS = 4  # attention heads of the perceiver
MAX_CODES = 150  # maximum number of T3 tokens
# seconds encoded for T3 and for S3Gen, and minimum duration
CODES_S = 6
SOUND_S = 10
MIN_S = 0.5
# the same for Turbo and Nano
MAX_TURBO_CODES = 375
TURBO_CODES_S = 15
TURBO_MIN_S = 5.0
LOUDNESS = -27.0  # LUFS; target loudness of recordings for Turbo and Nano
MAX_WIDTH = 1 << 14  # maximum width of the networks
FRAMES_PER_TOKEN = 2  # mel frames

TRIM_FRAME = 2048
TRIM_HOP = 512
TRIM_DB = 20.0
FOURIER = 400
HOP = 160
BANDS = 40
WIDTH = 256
NUM_LAYERS = 3
# frames per window, frames between windows, minimum rest for one more window
WINDOW = 160
STEP = 77
LEAST_REST = 45


def trimmed(pcm: np.ndarray) -> np.ndarray:
    """Trim frames that are 20 dB below the loudest frame from both ends of samples [n] at 16 kHz."""
    padded = np.pad(pcm, TRIM_FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, TRIM_FRAME)[::TRIM_HOP]
    power = np.maximum(np.square(frames, dtype=np.float32).mean(1), 1e-10)
    loud = np.flatnonzero(10 * np.log10(power / power.max()) > -TRIM_DB)
    return pcm[loud[0] * TRIM_HOP : (loud[-1] + 1) * TRIM_HOP]


class VoiceEncoder(nn.Module):
    """Speaker encoder for T3: an LSTM over windows of 1.6 s."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, WIDTH, NUM_LAYERS, batch_first=True)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def encode(self, pcm: Tensor) -> Tensor:
        """Encode samples [n] at 16 kHz, n > 200, to an x-vector, float32 [256], with norm 1."""
        bands = mel_filters(TOKEN_RATE_HZ, FOURIER, BANDS).to(pcm.device) @ power_spectrum(pcm, FOURIER, HOP)
        number, remainder = divmod(max(bands.shape[1] - WINDOW + STEP, 0), STEP)
        number += number == 0 or remainder >= LEAST_REST
        missing = max(0, WINDOW + STEP * (number - 1) - bands.shape[1])
        windows = F.pad(bands, (0, missing)).unfold(1, WINDOW, STEP)[:, :number]
        states = self.lstm(windows.permute(1, 2, 0))[1][0][-1]
        parts = F.relu(self.proj(states))
        mean = (parts / parts.norm(dim=1, keepdim=True)).mean(0)
        return mean / mean.norm()


def speaker_row(tensors: Mapping[str, Tensor], speaker: Tensor) -> Tensor:
    """Compute the first embedding row of a voice, float32 [1, H].

    Args:
        tensors: T3 tensors by published name, float32.
        speaker: x-vector of the voice encoder, [256].
    """
    return F.linear(speaker[None], *(tensors[f"{CONDITIONS}spkr_enc.{tensor}"] for tensor in ("weight", "bias")))


def voice_rows(tensors: Mapping[str, Tensor], speaker: Tensor, codes: Tensor) -> Tensor:
    """Compute the embedding rows of a voice except the last one, float32 [n - 1, H], as in `T3CondEnc`.

    Args:
        tensors: T3 tensors by published name, float32: those under `cond_enc.`, and the speech and position tables.
        speaker: x-vector, [256].
        codes: Tokens of the recording, int64 [t].
    """
    speech_rows = tensors[SPEECH][codes] + tensors[SPEECH_POSITIONS][: len(codes)]
    before = _attend(tensors, tensors[f"{PERCEIVER}pre_attention_query"][0], speech_rows)
    return torch.cat([speaker_row(tensors, speaker), _attend(tensors, before, before)])


def emotion_row(tensors: Mapping[str, Tensor], exaggeration: Tensor) -> Tensor:
    """Compute the row for the emotion, a voice's last one, float32 [1, H], from an exaggeration [1]."""
    return exaggeration.view(1, 1) @ tensors[f"{CONDITIONS}emotion_adv_fc.weight"].T


def _attend(tensors: Mapping[str, Tensor], queries: Tensor, memory: Tensor) -> Tensor:
    """Return the output [n, H] of the perceiver's attention block for queries [n, H] and memory [t, H]."""

    def linear(name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, *(tensors[f"{PERCEIVER}attn.{name}.{tensor}"] for tensor in ("weight", "bias")))

    def heads(name: str, rows: Tensor) -> Tensor:
        weight, bias = (tensors[f"{PERCEIVER}attn.norm.{tensor}"] for tensor in ("weight", "bias"))
        normed = F.layer_norm(rows, rows.shape[1:], weight, bias)
        return linear(name, normed).view(len(rows), NUM_HEADS, -1).transpose(0, 1)

    attended = F.scaled_dot_product_attention(heads("to_q", queries), heads("to_k", memory), heads("to_v", memory))
    return queries + linear("proj_out", attended.transpose(0, 1).flatten(1))


@dataclass(frozen=True, slots=True, eq=False)
class EncodedVoice:
    """Voice encoded from a recording.

    Attributes:
        rows: Embedding rows for T3, except for the emotion, float32 [n, H].
        sound: Recording for S3Gen.
        codes: Tokens that T3 itself reads, int32 [t]; empty except for Turbo and Nano.
    """

    rows: np.ndarray
    sound: Sound
    codes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def to_array(self) -> np.ndarray:
        """Concatenate rows, tokens, mel and x-vector to a float32 array [N].

        Tokens are less than 2^24, so float32 represents them exactly. If there are codes, their number and the codes
        come first.
        """
        front = [np.array([len(self.codes)]), self.codes] if len(self.codes) else []
        parts = [*front, self.rows, *self.sound.arrays()]
        return np.concatenate([array.ravel().astype(np.float32) for array in parts])

    @classmethod
    def from_array(
        cls, array: np.ndarray, rows_shape: tuple[int, int], num_mels: int, speaker: int, has_codes: bool = False
    ) -> "EncodedVoice":
        """Create the voice from a result of `to_array` with an x-vector of width `speaker`."""
        codes = np.zeros(0, np.int32)
        if has_codes:
            number = int(array[0])
            codes = array[1 : 1 + number].astype(np.int32)
            array = array[1 + number :]
        num_rows, width = rows_shape
        begin = num_rows * width
        end = len(array) - speaker
        num_tokens = (end - begin) // (1 + FRAMES_PER_TOKEN * num_mels)
        tokens, mel = np.split(array[begin:end], [num_tokens])
        sound = Sound.from_arrays(tokens, mel.reshape(-1, num_mels), array[end:])
        return cls(array[:begin].reshape(rows_shape), sound, codes)


class RecordingEncoder(nn.Module):
    """Networks that encode recordings, and the tensors that turn their results into prompt rows.

    Args:
        speaker: Width of the S3Gen x-vector.

    Attributes:
        condition: T3 tensors that compute prompt rows, by published name.
        excludes_min: True if a recording must be longer than `min_s`.
    """

    condition_names: tuple[str, ...] = (CONDITIONS, SPEECH, SPEECH_POSITIONS)
    min_s = MIN_S
    excludes_min = False
    codes_s = CODES_S
    max_codes = MAX_CODES

    def __init__(self, width: int, num_layers: int, speaker: int, num_mels: int):
        super().__init__()
        self.tokenizer = S3Tokenizer(width, num_layers)
        self.speaker_encoder = CamPlusPlus(speaker)
        self.ve = VoiceEncoder()
        self.num_mels = num_mels
        self.speaker = speaker
        self.condition: dict[str, Tensor] = {}

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording of at least `min_s` seconds, float32 [n] at 24 kHz, as the array of an `EncodedVoice`.

        Raises:
            InvalidRequest: If the voice encoder cannot represent the recording.
        """
        pcm = self.levelled(pcm)
        resampled = soxr.resample(pcm, MEL_RATE, TOKEN_RATE_HZ)
        size = -(-len(pcm) * TOKEN_RATE_HZ // MEL_RATE)
        at16 = np.pad(resampled[:size], (0, max(0, size - len(resampled))))
        codes = self.tokenizer.encode(self._tensor(at16[: self.codes_s * TOKEN_RATE_HZ]), self.max_codes)
        speaker = self.ve.encode(self._tensor(trimmed(at16)))
        if not speaker.isfinite().all():
            raise InvalidRequest("audio", "a recording of a voice", "one that the voice encoder cannot represent")
        return self.recorded(speaker, codes, self.sound(pcm)).to_array()

    def levelled(self, pcm: np.ndarray) -> np.ndarray:
        """Adjust the loudness of a recording, float32 [n] at 24 kHz, if the model needs that."""
        return pcm

    def recorded(self, speaker: Tensor, codes: Tensor, sound: Sound) -> EncodedVoice:
        """Return the voice for an x-vector [256], T3 tokens [t], and a recording for S3Gen."""
        return EncodedVoice(voice_rows(self.condition, speaker, codes).cpu().numpy(), sound)

    def check_condition(self, num_rows: int, hidden_size: int, path: Path) -> None:
        """Raise CheckpointError if tensors in `condition` are missing or do not fit T3."""
        codes = torch.full((MAX_CODES,), NUM_TOKENS - 1)
        rows = _made(
            lambda: [
                voice_rows(self.condition, torch.zeros(WIDTH), codes),
                emotion_row(self.condition, torch.zeros(1)),
            ],
            path,
        )
        if rows.shape != (num_rows, hidden_size):
            raise CheckpointError(f"{path}: expected rows {[num_rows, hidden_size]} of a voice, got {list(rows.shape)}")

    def voice(self, encoded: np.ndarray) -> EncodedVoice:
        """Return the voice in the result of `encode`."""
        _, num_queries, width = self.condition[f"{PERCEIVER}pre_attention_query"].shape
        return EncodedVoice.from_array(encoded, (1 + num_queries, width), self.num_mels, self.speaker)

    @torch.inference_mode()
    def sound(self, pcm: np.ndarray) -> Sound:
        """Encode the first 10 s of a recording, float32 [n] at 24 kHz, for S3Gen.

        Each token has two mel frames. In the authors' code, some recordings have one extra frame; it is dropped here.
        """
        at24 = self._tensor(pcm[: SOUND_S * MEL_RATE])
        mel = mel_spectrogram(at24, self.num_mels)
        at16 = resample_by_sinc(at24[None], MEL_RATE, TOKEN_RATE_HZ)[0]
        tokens = self.tokenizer.encode(at16)[: len(mel) // FRAMES_PER_TOKEN]
        x_vector = self.speaker_encoder.encode(at16)
        mel = mel[: FRAMES_PER_TOKEN * len(tokens)]
        return Sound.from_arrays(*(tensor.cpu().numpy() for tensor in (tokens, mel, x_vector)))

    @torch.inference_mode()
    def emotion_row(self, exaggeration: float) -> np.ndarray:
        """Return the row for the emotion, float32 [1, H]."""
        return emotion_row(self.condition, torch.tensor([exaggeration], device=self._device)).cpu().numpy()

    @property
    def _device(self) -> torch.device:
        return self.ve.proj.weight.device

    def _tensor(self, pcm: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(pcm, np.float32)).to(self._device)


class TurboRecordingEncoder(RecordingEncoder):
    """Networks that encode recordings for Turbo and Nano, as codes and one row for the speaker."""

    condition_names = (CONDITIONS,)
    min_s = TURBO_MIN_S
    excludes_min = True
    codes_s = TURBO_CODES_S
    max_codes = MAX_TURBO_CODES

    def levelled(self, pcm: np.ndarray) -> np.ndarray:
        return normalised(pcm, MEL_RATE, LOUDNESS)

    def recorded(self, speaker: Tensor, codes: Tensor, sound: Sound) -> EncodedVoice:
        row = speaker_row(self.condition, speaker).cpu().numpy()
        return EncodedVoice(row, sound, codes.cpu().numpy().astype(np.int32))

    def voice(self, encoded: np.ndarray) -> EncodedVoice:
        width = len(self.condition[f"{CONDITIONS}spkr_enc.bias"])
        return EncodedVoice.from_array(encoded, (1, width), self.num_mels, self.speaker, has_codes=True)

    def check_condition(self, num_rows: int, hidden_size: int, path: Path) -> None:
        rows = _made(lambda: [speaker_row(self.condition, torch.zeros(WIDTH))], path)
        if rows.shape != (1, hidden_size):
            raise CheckpointError(f"{path}: expected rows {[1, hidden_size]} of a voice, got {list(rows.shape)}")


def recording_encoder_of(
    tensors: Mapping[str, Tensor], network_class: type[RecordingEncoder] = RecordingEncoder
) -> RecordingEncoder:
    """Create the networks with sizes taken from published tensors; raise CheckpointError if one is missing."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layers = {name.split(".")[3] for name in shapes if name.startswith(f"{TOKENIZER}encoder.blocks.")}
    names = (f"{TOKENIZER}encoder.conv1.weight", f"{SPEAKER}xvector.dense.linear.weight")
    for name in names:
        if len(shapes.get(name, ())) != 3:
            raise CheckpointError(f"{name}: expected a tensor of 3 dimensions, got {shapes.get(name, 'none')}")
    width, speaker = (shapes[name][0] for name in names)
    if width % 64 or not 0 < width <= MAX_WIDTH:
        raise CheckpointError(f"{names[0]}: expected a multiple of 64 in [64, {MAX_WIDTH}], got {width}")
    if not 0 < speaker <= MAX_WIDTH:
        raise CheckpointError(f"{names[1]}: expected a width in [1, {MAX_WIDTH}], got {speaker}")
    with torch.device("meta"):
        return network_class(width, len(layers), speaker, num_mels=80)


def load_recording_encoder(
    checkpoint: Path,
    num_rows: int,
    hidden_size: int,
    device: str = "cpu",
    network_class: type[RecordingEncoder] = RecordingEncoder,
) -> RecordingEncoder:
    """Load the networks from `hearing/` in a checkpoint for T3 of width `hidden_size`."""
    path = checkpoint / FOLDER / "model.safetensors"
    tensors = read_tensors(path)
    is_condition = lambda name: name.startswith(network_class.condition_names)  # noqa: E731
    recording_encoder = recording_encoder_of(tensors, network_class)
    networks = {name: tensor for name, tensor in tensors.items() if not is_condition(name)}
    load_strictly(recording_encoder, networks, path, assign=True)
    recording_encoder = recording_encoder.eval().requires_grad_(False).to(device)
    recording_encoder.condition = {name: tensor for name, tensor in tensors.items() if is_condition(name)}
    recording_encoder.check_condition(num_rows, hidden_size, path)
    recording_encoder.condition = {name: tensor.to(device) for name, tensor in recording_encoder.condition.items()}
    return recording_encoder


def _made(make: Callable[[], list[Tensor]], path: Path) -> Tensor:
    """Return the rows that `make` computes; raise CheckpointError if a tensor is missing or has a wrong shape."""
    try:
        return torch.cat(make())
    except (LookupError, RuntimeError) as error:
        raise CheckpointError(f"{path}: expected the tensors of a voice's rows, got {error!r}") from error
