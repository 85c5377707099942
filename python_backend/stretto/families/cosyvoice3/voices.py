"""Voices of CosyVoice 3: codes, mel spectrogram and x-vector of a recording, by the release's own ONNX networks.

    recording 24 kHz ─► mel 0 … 12 kHz                                     [F, 80]
                     └► 16 kHz ─► log-mel ─► speech_tokenizer_v3.onnx      [n]
                               └► fbank ─► campplus.onnx                   [192]

The steps are those of `CosyVoiceFrontEnd` in https://github.com/FunAudioLLM/CosyVoice. The files are data of a release:
operators other than those of ONNX, and weights in other files, are rejected at conversion.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from stretto.codecs.cosyvoice3 import CHUNK
from stretto.codecs.onnx_runtime import open_session
from stretto.codecs.s3gen import FRAMES_PER_TOKEN
from stretto.encoders.s3gen import MEL_RATE, TOKEN_RATE_HZ, fbank, mel_spectrogram, resample_by_sinc, token_mel
from stretto.errors import CheckpointError, InvalidRequest
from stretto.records.chunk import Sound
from stretto.untrusted_files import regular_file

FOLDER = "hearing"  # folder of a checkpoint
TOKENIZER, SPEAKER = "speech_tokenizer_v3.onnx", "campplus.onnx"
HIGHEST_HZ, NUM_MELS, X_VECTOR = 12_000.0, 80, 192
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # operators that onnxruntime has built in
MAX_BYTES = 2 << 30  # the published tokenizer has about 1 GB
QUIET = 1e-4  # magnitude below which a recording is silent


def check_network(path: Path) -> None:
    """Raise CheckpointError if an ONNX file cannot be read, needs other files, or has operators of its own."""
    try:
        model = onnx.load(str(regular_file(path, MAX_BYTES)), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected an ONNX model, got {error!r}") from error
    others = sorted({each.domain for each in model.opset_import} - {*DOMAINS})
    if others or model.functions:
        raise CheckpointError(f"{path}: expected operators of ONNX, got those of {', '.join(others) or 'the file'}")
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        constants = [each.t for node in graph.node for each in node.attribute if each.HasField("t")]
        if any(uses_external_data(tensor) for tensor in (*graph.initializer, *constants)):
            raise CheckpointError(f"{path}: expected weights in the file itself, got a reference to another file")
        graphs += [each.g for node in graph.node for each in node.attribute if each.HasField("g")]
        graphs += [inner for node in graph.node for each in node.attribute for inner in each.graphs]


class Hearing:
    """Networks that encode recordings.

    Args:
        folder: Folder with both ONNX files.
        num_codes: Number of codes of the tokenizer.

    Raises:
        CheckpointError: A file is missing or is not such a network.
    """

    def __init__(self, folder: Path, num_codes: int):
        self._num_codes, self._tokenizer = num_codes, self._open(folder / TOKENIZER, 2)
        self._speaker = self._open(folder / SPEAKER, 1)

    @staticmethod
    def _open(path: Path, num_inputs: int) -> onnxruntime.InferenceSession:
        check_network(path)
        try:
            session = open_session(path)
        except Exception as error:  # onnxruntime raises a class per status
            raise CheckpointError(f"{path}: onnxruntime cannot open it: {str(error)[:200]}") from error
        if len(session.get_inputs()) != num_inputs:
            raise CheckpointError(f"{path}: expected {num_inputs} inputs, got {len(session.get_inputs())}")
        return session

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording; `sound_of` reads the result.

        Args:
            pcm: Samples, float32 [n] at 24 kHz.

        Returns:
            Codes, mel frames and x-vector, one after the other, float32 [N].

        Raises:
            InvalidRequest: The recording is silent, or the networks do not return what they should.
        """
        if np.abs(pcm).max() < QUIET:
            raise InvalidRequest("audio", "a recording of a voice", "silence")
        at24 = torch.from_numpy(np.ascontiguousarray(pcm, np.float32))
        at16 = resample_by_sinc(at24, MEL_RATE, TOKEN_RATE_HZ)
        mel, heard, bands = mel_spectrogram(at24, NUM_MELS, HIGHEST_HZ), token_mel(at16)[None], fbank(at16)
        length = np.array([heard.shape[2]], np.int32)
        tokens = np.asarray(self._run(self._tokenizer, heard.numpy(), length)).reshape(-1)
        x_vector = np.asarray(self._run(self._speaker, (bands - bands.mean(0))[None].numpy())).reshape(-1)
        size = min(len(tokens), len(mel) // FRAMES_PER_TOKEN)
        is_code = tokens.dtype.kind in "iu" and size and 0 <= tokens[:size].min() <= tokens[:size].max()
        if not is_code or tokens[:size].max() >= self._num_codes:
            raise InvalidRequest("audio", f"codes in [0, {self._num_codes}) of {TOKENIZER}", f"{tokens[:4]}")
        if x_vector.shape != (X_VECTOR,) or not np.isfinite(x_vector).all():
            raise InvalidRequest("audio", f"{X_VECTOR} finite numbers of {SPEAKER}", f"{x_vector[:4]}")
        heard_mel = mel[: FRAMES_PER_TOKEN * size].numpy()
        return np.concatenate([each.ravel().astype(np.float32) for each in (tokens[:size], heard_mel, x_vector)])

    @staticmethod
    def _run(session: onnxruntime.InferenceSession, *values: np.ndarray) -> np.ndarray:
        names = [each.name for each in session.get_inputs()]
        return session.run(None, dict(zip(names, values, strict=True)))[0]


def sound_of(encoded: np.ndarray) -> Sound:
    """Return the recording in a result of `Hearing.encode`: all codes, mel frames and the x-vector."""
    end = len(encoded) - X_VECTOR
    tokens, mel = np.split(encoded[:end], [end // (1 + FRAMES_PER_TOKEN * NUM_MELS)])
    return Sound.from_arrays(tokens, mel.reshape(-1, NUM_MELS), encoded[end:])


def latest_chunks(sound: Sound) -> Sound:
    """Return a recording for the flow: its latest codes, a multiple of 25, with their mel frames."""
    tokens, mel, x_vector = sound.arrays()
    first = len(tokens) % CHUNK
    return Sound.from_arrays(tokens[first:], mel[FRAMES_PER_TOKEN * first :], x_vector)
