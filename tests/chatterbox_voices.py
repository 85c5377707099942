"""Recordings of voices, and the authors' encodings of them by the random networks of `random_chatterbox.hearing`."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.checkpoints import random_chatterbox
from stretto.families.chatterbox.voices import COUNTERS, UNUSED, Hearing, hearing_of
from stretto.preprocessing.audio import resample
from stretto.records.chunk import Sound

AUTHORS = Path(__file__).parent / "data" / "chatterbox_voices.npz"
NAMES = ("even", "odd", "silence", "long", "stereo", "short")


@cache
def authors() -> dict[str, np.ndarray]:
    """Return the arrays of the authors' `prepare_conditionals`, as "recording.array"."""
    with np.load(AUTHORS) as stored:
        return dict(stored)


@cache
def recordings() -> dict[str, tuple[np.ndarray, int]]:
    """Return recordings by name, float32 [n] or [n, 2], with their rates: tones and noise, some with silence."""
    draw = np.random.default_rng(1)

    def tone(seconds: float, rate: int, quiet: float = 0.0) -> np.ndarray:
        time = np.arange(int(seconds * rate)) / rate
        pcm = 0.3 * np.sin(2 * np.pi * (140 * time + 30 * np.sin(3 * time))) * (1 + np.sin(9 * time)) / 2
        pcm = pcm + 0.02 * draw.standard_normal(len(time))
        still = 1e-4 * draw.standard_normal(int(quiet * rate))
        return np.concatenate([still, pcm, still]).astype(np.float32)

    stereo = tone(7.013, 44100, 0.4)
    return {
        "even": (tone(6.0, 24000), 24000),
        "odd": (tone(2.3171, 24000), 24000),
        "silence": (tone(4.1, 16000, 0.8), 16000),
        "long": (tone(12.4, 24000), 24000),
        "stereo": (np.stack([stereo, 0.5 * stereo], 1), 44100),
        "short": (tone(0.31, 24000), 24000),
    }


def at_24_khz(name: str) -> np.ndarray:
    """Return a recording, mono, float32 [n] at 24 kHz."""
    pcm, rate = recordings()[name]
    return resample(pcm.mean(1) if pcm.ndim == 2 else pcm, rate, 24_000)


def networks() -> Hearing:
    """Return the random networks without the tensors that make rows."""
    drawn = random_chatterbox.hearing()
    kept = {name: each for name, each in drawn.items() if name not in UNUSED and not name.endswith(COUNTERS)}
    hearing = hearing_of(kept)
    hearing.load_state_dict(kept, assign=True)
    return hearing.eval()


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
