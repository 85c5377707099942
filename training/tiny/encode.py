"""Encoding of speech shards for the language model.

Each `shard_NNNN.pt` becomes `codes_NNNN.pt`, for speech generation, and `heard_NNNN.pt`, for transcription.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from stretto.codecs.tiny.codec import SAMPLE_RATE, ResidualVQ
from training.tiny.clips import load_quantiser
from training.tiny.corpus import CODES, HEARD, write_encoded
from training.tiny.encoded import FRAME_RATE, Spoken, encode_utterance
from training.tiny.fit_codec import stacked_mel
from training.tiny.synthesise import Utterance, read_shard

LEAD_S = 1 / FRAME_RATE  # silence before generated speech, one frame: every phoneme has a frame, the silence too
# Recordings have other silences than flite's speech, and noise. The client's own trimming leaves 0.3 s at most.
HEARD_BEFORE_S, HEARD_AFTER_S = (0.0, 0.4), (0.0, 0.4)
NOISY_SHARE, NOISE_DBFS = 0.5, (-70.0, -40.0)


def with_silence(utterance: Utterance, before_s: float, after_s: float | None = None) -> Utterance:
    """Return the utterance with other silences at its ends; their phonemes stay.

    Args:
        utterance: Speech that begins and ends with a silence.
        before_s: Silence before the speech in seconds.
        after_s: Silence after the speech in seconds; None leaves it.
    """
    assert utterance.phonemes[0] == utterance.phonemes[-1] == "pau", utterance.phonemes
    pcm, first, last = utterance.pcm, utterance.ends_s[0], utterance.ends_s[-2]
    begin, end = round(first * SAMPLE_RATE), round(last * SAMPLE_RATE)
    before = _fitted(pcm[:begin].flip(0), before_s).flip(0)
    after = pcm[end:] if after_s is None else _fitted(pcm[end:], after_s)
    shift_s = before_s - first
    ends_s = (before_s, *(each + shift_s for each in utterance.ends_s[1:-1]), last + shift_s + len(after) / SAMPLE_RATE)
    return replace(utterance, ends_s=ends_s, pcm=torch.cat([before, pcm[begin:end], after]))


def _fitted(pcm: torch.Tensor, seconds: float) -> torch.Tensor:
    """Return the first samples of `pcm`, followed by zeros if it is shorter than `seconds`."""
    size = round(seconds * SAMPLE_RATE)
    return torch.cat([pcm[:size], pcm.new_zeros(max(0, size - len(pcm)))])


def spoken(utterance: Utterance) -> Utterance:
    """Return the utterance as the model learns to generate it."""
    return with_silence(utterance, LEAD_S)


def heard(utterance: Utterance, rng: random.Random) -> Utterance:
    """Return the utterance as a recording: with random silences, and often with noise."""
    recording = with_silence(utterance, rng.uniform(*HEARD_BEFORE_S), rng.uniform(*HEARD_AFTER_S))
    if rng.random() >= NOISY_SHARE:
        return recording
    level = 32768 * 10 ** (rng.uniform(*NOISE_DBFS) / 20)
    noise = level * np.random.default_rng(rng.getrandbits(32)).standard_normal(len(recording.pcm))
    noisy = (recording.pcm.numpy() + noise).round().clip(-32768, 32767)
    return replace(recording, pcm=torch.from_numpy(noisy.astype(np.int16)))


def encode_one(utterance: Utterance, quantiser: ResidualVQ) -> Spoken | None:
    """Return the utterance with its codes, or None if it has more phonemes than frames."""
    codes = quantiser.encode(stacked_mel(utterance)).numpy().astype(np.uint8)
    return encode_utterance(utterance, codes)


def encode_shards(folder: Path, rvq: Path) -> None:
    """Encode all shards of `folder` that have not been encoded yet."""
    quantiser = load_quantiser(rvq)
    for shard in sorted(folder.glob("shard_*.pt")):
        rng = random.Random(shard.stem)
        forms: dict[str, Callable[[Utterance], Utterance]] = {CODES: spoken, HEARD: partial(heard, rng=rng)}
        for name, form in forms.items():
            path = folder / shard.name.replace("shard", name)
            if not path.exists():
                encoded = [encode_one(form(utterance), quantiser) for utterance in read_shard(shard)]
                write_encoded(path, [utterance for utterance in encoded if utterance is not None])
