"""CosyVoice 3 voices: codes, mel spectrogram and x-vector of a recording, by the release's ONNX files.

    recording 24 kHz ─► mel 0 … 12 kHz                                     [F, 80]
                     └► 16 kHz ─► log-mel ─► speech_tokenizer_v3.onnx      [n]
                               └► fbank ─► campplus.onnx                   [192]

The steps follow `CosyVoiceFrontEnd` in https://github.com/FunAudioLLM/CosyVoice. The files come from a release, so
custom operators and weights in external files are rejected at conversion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError, Message
from onnx.external_data_helper import uses_external_data
from torch import Tensor

from stretto.codecs.onnx_runtime import open_session
from stretto.codecs.recorded_voices import FRAMES_PER_TOKEN
from stretto.encoders.voice_spectra import MEL_RATE, TOKEN_RATE_HZ, fbank, mel_spectrogram, resample_by_sinc, token_mel
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.conversion import BOUNDED, is_bounded
from stretto.records.chunk import Sound
from stretto.untrusted_files import regular_file
from stretto.weights.loading import read_tensors
from stretto_cosyvoice3.codec import CHUNK, MAX_VOICE_TOKENS

FOLDER = "hearing"  # folder in a checkpoint
TOKENIZER = "speech_tokenizer_v3.onnx"
SPEAKER = "campplus.onnx"
HIGHEST_HZ = 12_000.0
NUM_MELS = 80
X_VECTOR = 192
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # domains of operators built into onnxruntime
NAMED = "voices"  # folder in a checkpoint that contains the release's voices
# Parts of a named voice: key in spk2info.pt, and number of columns (0 for ids).
VOICE_PARTS = {
    "text": ("prompt_text", 0),
    "tokens": ("flow_prompt_speech_token", 0),
    "mel": ("prompt_speech_feat", NUM_MELS),
    "x_vector": ("flow_embedding", X_VECTOR),
}
# characters, voices
MAX_NAME = 64
MAX_NAMED = 256
MAX_BYTES = 2 << 30  # the published tokenizer is about 1 GB


def check_network(path: Path) -> None:
    """Raise CheckpointError if an ONNX file cannot be read, needs other files, or has custom operators."""
    try:
        model = onnx.load(str(regular_file(path, MAX_BYTES)), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected an ONNX model, got {error!r}") from error
    others = sorted({operators.domain for operators in model.opset_import} - {*DOMAINS})
    if others or model.functions:
        raise CheckpointError(f"{path}: expected operators of ONNX, got those of {', '.join(others) or 'the file'}")
    messages: list[Message] = [model]
    while messages:
        message = messages.pop()
        if isinstance(message, onnx.TensorProto) and uses_external_data(message):
            raise CheckpointError(f"{path}: expected weights in the file itself, got a reference to another file")
        for field, value in message.ListFields():  # every tensor, including sparse ones and lists of tensors
            if field.message_type is not None:
                messages += [value] if isinstance(value, Message) else value


def check_voice(path: Path, name: Any, voice: Any) -> dict[str, Tensor]:
    """Return the tensors of a voice in `spk2info.pt`, as the authors' `add_zero_shot_spk` stores it.

    Returns:
        Ids of instruction and words [n], codes [n], mel frames [2 n, M] and the x-vector [192], by the names of
        `VOICE_PARTS`.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise CheckpointError(f"{path}: expected names of 1 to {MAX_NAME} printable characters, got {shown(name)}")
    parts = dict[str, Tensor]()
    for tensor_name, (key, width) in VOICE_PARTS.items():
        values = voice.get(key) if isinstance(voice, dict) else None
        if not isinstance(values, Tensor) or values.ndim != (3 if tensor_name == "mel" else 2) or len(values) != 1:
            got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise CheckpointError(f"{path}: {name}: {key}: expected a tensor of one recording, got {got}")
        if values.is_floating_point() is not bool(width) or values.layout is not torch.strided:
            expected = "dense numbers" if width else "dense ids"
            got = f"{values.dtype}, {values.layout}"
            raise CheckpointError(f"{path}: {name}: {key}: expected {expected}, got {got}")
        if width and (values.shape[-1] != width or not is_bounded(values)):
            expected = f"{width} columns of {BOUNDED}"
            raise CheckpointError(f"{path}: {name}: {key}: expected {expected}, got shape {list(values.shape)}")
        parts[tensor_name] = values[0].float().contiguous() if width else values[0].to(torch.int32)
    size = len(parts["tokens"])
    frames = len(parts["mel"])
    if not CHUNK <= size <= MAX_VOICE_TOKENS or frames != FRAMES_PER_TOKEN * size:
        expected = f"{CHUNK} to {MAX_VOICE_TOKENS} codes and {FRAMES_PER_TOKEN} mel frames for each"
        raise CheckpointError(f"{path}: {name}: expected {expected}, got {size} codes and {frames} frames")
    return parts


def check_ids(path: Path, name: str, parts: dict[str, Tensor], num_codes: int, num_text: int, end: int) -> None:
    """Raise CheckpointError unless a voice's ids are valid and its text contains `end` once."""
    for tensor_name, number in (("tokens", num_codes), ("text", num_text)):
        ids = parts[tensor_name]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < number:
            key = VOICE_PARTS[tensor_name][0]
            got = f"{ids.min()} ... {ids.max()}"
            raise CheckpointError(f"{path}: {name}: {key}: expected ids in [0, {number}), got {got}")
    if int((parts["text"] == end).sum()) != 1:
        expected = f"{VOICE_PARTS['text'][0]} with <|endofprompt|> once, after the instruction"
        raise CheckpointError(f"{path}: {name}: expected {expected}, got it {int((parts['text'] == end).sum())} times")


@dataclass(frozen=True, slots=True)
class NamedVoice:
    """Voice of a release.

    Attributes:
        style: Ids of the instruction, including `<|endofprompt|>`.
        words: Ids of the recording's words.
    """

    sound: Sound
    style: list[int]
    words: list[int]


def read_named_voices(checkpoint: Path, names: Sequence[str], end: int) -> dict[str, NamedVoice]:
    """Return the named voices of a checkpoint; `end` is the id of `<|endofprompt|>`."""
    if not names:
        return {}
    path = checkpoint / NAMED / "model.safetensors"
    voices = dict[str, NamedVoice]()
    stored = read_tensors(path)
    for index, name in enumerate(names):
        values = {tensor_name: stored.get(f"{index}.{tensor_name}") for tensor_name in VOICE_PARTS}
        if any(value is None for value in values.values()):
            raise CheckpointError(f"{path}: expected the voice {name}, got none")
        text, tokens, mel, x_vector = (np.asarray(tensor) for tensor in values.values())
        ids = text.astype(np.int32).tolist()
        if end not in ids:
            raise CheckpointError(f"{path}: {name}: expected text with the id {end} of <|endofprompt|>, got none")
        sound = Sound.from_arrays(tokens.astype(np.int32), mel, x_vector.reshape(-1))
        voices[name] = NamedVoice(sound, ids[: ids.index(end) + 1], ids[ids.index(end) + 1 :])
    return voices


class RecordingEncoder:
    """Networks that encode recordings, from the two ONNX files in `folder`."""

    def __init__(self, folder: Path, num_codes: int):
        self._num_codes = num_codes
        self._tokenizer = self._open(folder / TOKENIZER, 2)
        self._speaker = self._open(folder / SPEAKER, 1)

    @staticmethod
    def _open(path: Path, num_inputs: int) -> onnxruntime.InferenceSession:
        check_network(path)
        try:
            session = open_session(path)
        except Exception as error:  # onnxruntime raises a different class for each status
            raise CheckpointError(f"{path}: onnxruntime cannot open it: {str(error)[:200]}") from error
        if len(session.get_inputs()) != num_inputs:
            raise CheckpointError(f"{path}: expected {num_inputs} inputs, got {len(session.get_inputs())}")
        return session

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording, float32 [n] at 24 kHz, as codes, mel frames and x-vector, joined to float32 [N].

        Raises:
            InvalidRequest: If the networks' output has an unexpected shape or value.
        """
        at24 = torch.from_numpy(np.ascontiguousarray(pcm, np.float32))
        at16 = resample_by_sinc(at24[None], MEL_RATE, TOKEN_RATE_HZ)[0]
        mel = mel_spectrogram(at24, NUM_MELS, HIGHEST_HZ)
        heard = token_mel(at16)[None]
        bands = fbank(at16)
        length = np.array([heard.shape[2]], np.int32)
        tokens = np.asarray(self._run(self._tokenizer, heard.numpy(), length)).reshape(-1)
        x_vector = np.asarray(self._run(self._speaker, (bands - bands.mean(0))[None].numpy())).reshape(-1)
        size = min(len(tokens), len(mel) // FRAMES_PER_TOKEN)
        is_code = tokens.dtype.kind in "iu" and size and 0 <= tokens[:size].min() <= tokens[:size].max()
        if not is_code or tokens[:size].max() >= self._num_codes:
            raise InvalidRequest("audio", f"codes in [0, {self._num_codes}) of {TOKENIZER}", f"{tokens[:4]}")
        if x_vector.shape != (X_VECTOR,) or not np.isfinite(x_vector).all():
            raise InvalidRequest("audio", f"{X_VECTOR} finite numbers of {SPEAKER}", f"{x_vector[:4]}")
        prompt_mel = mel[: FRAMES_PER_TOKEN * size].numpy()
        return np.concatenate([array.ravel().astype(np.float32) for array in (tokens[:size], prompt_mel, x_vector)])

    @staticmethod
    def _run(session: onnxruntime.InferenceSession, *values: np.ndarray) -> np.ndarray:
        names = [model_input.name for model_input in session.get_inputs()]
        return session.run(None, dict(zip(names, values, strict=True)))[0]


def sound_of(encoded: np.ndarray) -> Sound:
    """Convert a result of `RecordingEncoder.encode` to a recording."""
    end = len(encoded) - X_VECTOR
    tokens, mel = np.split(encoded[:end], [end // (1 + FRAMES_PER_TOKEN * NUM_MELS)])
    return Sound.from_arrays(tokens, mel.reshape(-1, NUM_MELS), encoded[end:])


def latest_chunks(sound: Sound) -> Sound:
    """Cut the beginning of a recording, so that its number of codes is a multiple of 25."""
    tokens, mel, x_vector = sound.arrays()
    first = len(tokens) % CHUNK
    return Sound.from_arrays(tokens[first:], mel[FRAMES_PER_TOKEN * first :], x_vector)
