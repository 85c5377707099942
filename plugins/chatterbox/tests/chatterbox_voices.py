"""Recordings of voices, and their encodings by the authors' code with random networks."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plugins.chatterbox.lab import random_chatterbox
from plugins.chatterbox.lab.chatterbox_voices import recordings
from stretto.preprocessing.audio import resample
from stretto.records.chunk import Sound
from stretto_chatterbox.voices import COUNTERS, UNUSED, RecordingEncoder, recording_encoder_of

AUTHORS = Path(__file__).parent / "data" / "chatterbox_voices.npz"
NAMES = ("even", "odd", "silence", "long", "stereo", "short")


@cache
def authors() -> dict[str, np.ndarray]:
    """Return the arrays from the authors' `prepare_conditionals`, under keys "recording.array"."""
    with np.load(AUTHORS) as stored:
        return dict(stored)


def at_24_khz(name: str) -> np.ndarray:
    """Return a mono recording, float32 [n] at 24 kHz."""
    pcm, rate = recordings()[name]
    return resample(pcm.mean(1) if pcm.ndim == 2 else pcm, rate, 24_000)


def networks(kind: type[RecordingEncoder] = RecordingEncoder) -> RecordingEncoder:
    """Return the random networks of a class, excluding the tensors that make prompt rows."""
    drawn = random_chatterbox.recording_encoder()
    kept = {name: each for name, each in drawn.items() if name not in UNUSED and not name.endswith(COUNTERS)}
    recording_encoder = recording_encoder_of(kept, kind)
    recording_encoder.load_state_dict(kept, assign=True)
    return recording_encoder.eval()


def voice_file(codes: np.ndarray, speaker: np.ndarray, sound: Sound) -> dict[str, Any]:
    """Return a voice as the authors' `Conditionals.save` writes it, with an exaggeration of 0.5.

    Args:
        codes: Tokens for T3, int [t].
        speaker: x-vector of the voice encoder, float32 [256].
        sound: Recording for S3Gen.
    """
    tokens, mel, x_vector = (torch.from_numpy(each.copy())[None] for each in sound.arrays())
    t3 = {
        "speaker_emb": torch.from_numpy(speaker)[None],
        "cond_prompt_speech_tokens": torch.from_numpy(codes)[None].long(),
        "emotion_adv": 0.5 * torch.ones(1, 1, 1),
    }
    return {"t3": t3, "gen": {"prompt_token": tokens.long(), "prompt_feat": mel, "embedding": x_vector}}
