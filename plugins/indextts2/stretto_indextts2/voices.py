"""Voices of IndexTTS-2: rows for the language model, an emotion, and a recording for the decoder.

    recording 22.05 kHz ─► mel                                                  [F, 80]
                       └► 16 kHz ─► semantic hidden states ─► codes             [n]
                                 │                         ├► conditioning ─► latents  [R, H]
                                 │                         └► conditioning ─► emotion  [H]
                                 └► fbank ─► CAM++ style                        [192]

The emotion is added to the latents. It is that of the voice's own recording, that of another recording, or a mixture of
eight emotions: for each, the vector in the release whose speaker has the most similar style. As in the authors'
`IndexTTS2.infer`, only the first 15 s of a recording are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stretto.codecs.cosyvoice.shapes import Shapes, shape_of
from stretto.encoders.cam_plus_plus import CamPlusPlus
from stretto.encoders.voice_spectra import TOKEN_RATE_HZ, mel_spectrogram, resample_by_sinc
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.conversion import BOUNDED, is_bounded
from stretto.family.encoding_turns import pass_turn
from stretto.untrusted_files import json_object
from stretto.weights.loading import load_strictly, read_tensors
from stretto_indextts2.codec import MAX_VOICE_TOKENS
from stretto_indextts2.conditioning import conformer_of, perceiver_of
from stretto_indextts2.family import HOP, SAMPLE_RATE
from stretto_indextts2.flow import NUM_MELS, STYLE
from stretto_indextts2.semantics import SpeechStates, semantic_codec_of, speech_model_of

FOLDER = "hearing"  # folder in a checkpoint
MIN_S = 0.5
MAX_S = 15  # duration of a recording that is read
FOURIER = 1024
HIGHEST_HZ = SAMPLE_RATE / 2
# In the order of the authors' vector.
EMOTIONS = ("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm")
SIZES = "emotions"  # key of the folder's config.json: number of vectors of each emotion
MAX_VECTORS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class EncodedVoice:
    """Voice encoded from a recording.

    Attributes:
        latents: Rows for the language model without an emotion, float32 [R, H]; R is 32 in the release.
        emotion: Emotion of the recording, float32 [H].
        style: Style vector, float32 [192].
        tokens: Semantic codes, int32 [n].
        mel: Mel spectrogram, float32 [F, 80].
    """

    latents: np.ndarray
    emotion: np.ndarray
    style: np.ndarray
    tokens: np.ndarray
    mel: np.ndarray

    def to_array(self) -> np.ndarray:
        """Concatenate the sizes [R, H, n] and all arrays to a float32 array [N], which represents ids exactly."""
        sizes = np.array([*self.latents.shape, len(self.tokens)])
        arrays = (sizes, self.latents, self.emotion, self.style, self.tokens, self.mel)
        return np.concatenate([array.ravel().astype(np.float32) for array in arrays])

    @classmethod
    def from_array(cls, array: np.ndarray) -> "EncodedVoice":
        """Create the voice from a result of `to_array`."""
        num_rows, width, num_tokens = (int(size) for size in array[:3])
        ends = np.cumsum([num_rows * width, width, STYLE, num_tokens])
        latents, emotion, style, tokens, mel = np.split(array[3:], ends)
        return cls(latents.reshape(-1, width), emotion, style, tokens.astype(np.int32), mel.reshape(-1, NUM_MELS))


class RecordingEncoder(nn.Module):
    """Networks that encode recordings, and the vectors of emotions.

    Args:
        shapes: Shapes of the tensors in `hearing/` by name.
        sizes: Number of vectors of each emotion.
    """

    def __init__(self, shapes: Shapes, sizes: Sequence[int]):
        super().__init__()
        self.sizes = list(sizes)
        width, summary = shape_of(shapes, "emovec_layer.weight", 2)
        states = shape_of(shapes, "speech.mean", 1)[0]
        self.speech = SpeechStates(speech_model_of(shapes, states))
        self.semantic = semantic_codec_of(shapes, states)
        self.speaker_encoder = CamPlusPlus(STYLE)
        self.conditioning_encoder = conformer_of(shapes, "conditioning_encoder", states)
        context = self.conditioning_encoder.width
        self.perceiver_encoder = perceiver_of(shapes, "perceiver_encoder", context, width)
        self.emo_conditioning_encoder = conformer_of(shapes, "emo_conditioning_encoder", states)
        context = self.emo_conditioning_encoder.width
        self.emo_perceiver_encoder = perceiver_of(shapes, "emo_perceiver_encoder", context, summary)
        self.emovec_layer = nn.Linear(summary, width)
        self.emo_layer = nn.Linear(width, width)
        self.emotion_styles = nn.Parameter(torch.zeros(sum(sizes), STYLE))
        self.emotion_vectors = nn.Parameter(torch.zeros(sum(sizes), width))

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording, float32 [n] at 22.05 kHz, as the array of an `EncodedVoice`.

        Samples after 15 s are not read.

        Raises:
            InvalidRequest: If the recording is too short, or the networks cannot represent it.
        """
        pass_turn()
        if len(pcm) < MIN_S * SAMPLE_RATE:
            raise InvalidRequest("audio", f"at least {MIN_S} s of a voice", f"{len(pcm) / SAMPLE_RATE:.3f} s")
        samples = torch.from_numpy(np.ascontiguousarray(pcm[: MAX_S * SAMPLE_RATE], np.float32))
        samples = samples.to(self.emo_layer.weight.device)
        at16 = resample_by_sinc(samples[None], SAMPLE_RATE, TOKEN_RATE_HZ)[0]
        states = self.speech(at16)
        latents = self.perceiver_encoder(self.conditioning_encoder(states))
        summary = self.emo_perceiver_encoder(self.emo_conditioning_encoder(states))[0]
        mel = mel_spectrogram(samples, NUM_MELS, HIGHEST_HZ, sample_rate=SAMPLE_RATE, fourier=FOURIER, hop=HOP)
        emotion = self.emo_layer(self.emovec_layer(summary))
        style = self.speaker_encoder.encode(at16)
        tokens = self.semantic(states)[:MAX_VOICE_TOKENS]
        tensors = (latents, emotion, style, tokens, mel)
        encoded = EncodedVoice(*(tensor.cpu().numpy() for tensor in tensors)).to_array()
        if not np.isfinite(encoded).all():
            raise InvalidRequest("audio", "a recording of a voice", "one that the networks cannot represent")
        return encoded

    @torch.inference_mode()
    def mixed_emotion(self, emotion: np.ndarray, style: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return weights · nearest vectors + (1 - sum of the weights) · emotion, float32 [H].

        Args:
            emotion: Emotion of a recording, float32 [H].
            style: Style of the voice, float32 [192].
            weights: Weight of each emotion, float32 [8], at most 1 together.
        """
        voice = torch.from_numpy(style).to(self.emotion_styles)
        similar = F.cosine_similarity(voice[None], self.emotion_styles)
        groups = zip(similar.split(self.sizes), self.emotion_vectors.split(self.sizes), strict=True)
        vectors = torch.stack([vectors[cosines.argmax()] for cosines, vectors in groups]).cpu().numpy()
        return (weights @ vectors + (1 - weights.sum()) * emotion).astype(np.float32)


def load_recording_encoder(checkpoint: Path, device: str = "cpu") -> RecordingEncoder:
    """Load the networks from `hearing/` in a checkpoint."""
    folder = checkpoint / FOLDER
    config = folder / "config.json"
    sizes = emotion_sizes(json_object(config).get(SIZES), f"{config}: {SIZES}")
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    with torch.device("meta"):
        encoder = RecordingEncoder({name: tensor.shape for name, tensor in tensors.items()}, sizes)
    load_strictly(encoder, tensors, path, assign=True)
    if not is_bounded(encoder.emotion_vectors):
        raise CheckpointError(f"{path}: emotion_vectors: expected {BOUNDED}")
    if not (encoder.speech.var > 0).all():
        raise CheckpointError(f"{path}: speech.var: expected positive numbers")
    return encoder.eval().requires_grad_(False).to(device)


def emotion_sizes(sizes: Any, source: str) -> tuple[int, ...]:
    """Check and return the number of vectors of each emotion, from the field `source` of a file."""
    is_list = isinstance(sizes, list | tuple) and len(sizes) == len(EMOTIONS)
    if not is_list or not all(type(size) is int and 1 <= size <= MAX_VECTORS for size in sizes):
        expected = f"{len(EMOTIONS)} integers in [1, {MAX_VECTORS}]"
        raise CheckpointError(f"{source}: expected {expected}, got {shown(sizes)}")
    return tuple(sizes)
