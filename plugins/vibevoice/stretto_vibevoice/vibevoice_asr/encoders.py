"""Acoustic and semantic encoder of recordings, which the preprocessor runs, and the codec without frames.

Both encoders are causal, so a long recording is encoded in chunks, with the layers' state passed from one to the next.
Tensors are named as in transformers' classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Windowed
from stretto.codecs.soundless import Soundless
from stretto.codecs.streaming import prepare_products
from stretto.family.encoding_turns import pass_turn
from stretto.untrusted_files import entry, json_object
from stretto.weights.loading import CONFIG_FILE, load_strictly, read_tensors
from stretto_vibevoice.codec import SAMPLE_RATE, Encoder, TokenizerConfig, gaussian_noise, normalised
from stretto_vibevoice.vibevoice_asr.family import NAME, TIMES_PER_S

FOLDER = "encoders"  # folder in a checkpoint
NETWORKS = ("acoustic", "semantic")
CHUNK_FRAMES = 60  # 8 s, whose widest layers take 0.4 GB


class RecordingEncoders(nn.Module):
    """Acoustic encoder, with noise added to its latents as in training, and semantic encoder."""

    def __init__(self, acoustic: TokenizerConfig, semantic: TokenizerConfig) -> None:
        super().__init__()
        self.hop = acoustic.hop
        self.deviation = acoustic.deviation
        self.acoustic = Encoder(acoustic)
        self.semantic = Encoder(semantic)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "RecordingEncoders":
        return cls(*(TokenizerConfig.from_record(entry(record, name), name) for name in NETWORKS))

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray, seed: int) -> np.ndarray:
        """Return latents with noise of `seed`, and features, float32 [T, A + E], of samples, float32 [n] at 24 kHz.

        Silence completes the last frame.
        """
        loud = torch.from_numpy(normalised(pcm))
        padded = F.pad(loud, (0, -len(loud) % self.hop))
        networks = (self.acoustic, self.semantic)
        weight = self.acoustic.head.conv.weight
        states = [weight.new_zeros(1, network.num_kept) for network in networks]
        chunks = list[Tensor]()
        for samples in padded.split(CHUNK_FRAMES * self.hop):
            vectors = list[Tensor]()
            for index, network in enumerate(networks):
                encoded, states[index] = network.step(samples.to(weight)[None, None], states[index])
                vectors.append(encoded[0].T)
            chunks.append(torch.cat(vectors, 1).cpu())
            pass_turn()
        features = torch.cat(chunks).numpy()
        means = features[:, : len(self.acoustic.head.conv.weight)]
        noise = gaussian_noise(seed, 1 + means.size)
        means += (self.deviation * noise[0] * noise[1:]).reshape(means.shape)
        return features


def load_encoders(checkpoint: Path, device: str) -> RecordingEncoders:
    """Load a checkpoint's encoders in float32; raise CheckpointError if a file is missing or does not fit."""
    folder = checkpoint / FOLDER
    with torch.device("meta"):
        encoders = RecordingEncoders.from_record(json_object(folder / CONFIG_FILE))
    path = folder / "model.safetensors"
    tensors = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    load_strictly(encoders, tensors, path, assign=True)
    return prepare_products(encoders.eval().requires_grad_(False).to(device))


class NoFrames(Soundless):
    """Codec of a model that generates no audio. Its frame rate is the resolution of the times in transcripts."""

    spec = CodecSpec(NAME, SAMPLE_RATE, int(SAMPLE_RATE / TIMES_PER_S), 1, 1, Windowed(0, 0))


def load(directory: Path, device: str = "cpu") -> NoFrames:
    """Return the codec, which has no files."""
    return NoFrames()
