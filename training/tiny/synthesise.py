"""Shards of training speech: sentences that flite synthesises in two voices, with phonemes, times and words.

A shard is a list of `Utterance` records saved by torch. After a restart, a worker continues with its next shard.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from training.tiny.boundaries import word_of_phonemes
from training.tiny.flite import pronounce, speak
from training.tiny.text import domain_vocabulary
from training.tiny.words import load_words, training_sentence

SHARD_SIZE = 250
SLT_SHARE = 0.6

Pronunciations = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Utterance:
    """A synthesised sentence.

    Attributes:
        words: Word index of each phoneme; -1 for silence.
        pcm: Samples at 16 kHz, int16 [n].
    """

    text: str
    voice: str
    phonemes: tuple[str, ...]
    ends_s: tuple[float, ...]
    words: tuple[int, ...]
    pcm: torch.Tensor


def spelled_words(text: str) -> list[str]:
    """Return the words of a normalised text, excluding punctuation."""
    return [word for word in (piece.strip(",.?") for piece in text.split()) if word]


def load_pronunciations(folder: Path) -> Pronunciations:
    """Return the isolated pronunciation of every listed word; the result is cached in `pronunciations.json`."""
    path = folder / "pronunciations.json"
    if not path.exists():
        words = load_words()
        every = sorted({*words.spoken, *words.read, *words.held_out, *domain_vocabulary()})
        path.write_text(json.dumps(pronounce(every)))
    return {word: tuple(phonemes) for word, phonemes in json.loads(path.read_text()).items()}


def utter(text: str, voice: str, pronunciations: Pronunciations, scratch: Path) -> Utterance | None:
    """Synthesise a sentence; return None if flite splits it or its words cannot be aligned."""
    words = spelled_words(text)
    if not all(word in pronunciations for word in words):
        return None
    speech = speak(text, voice, scratch)
    if speech is None:
        return None
    placed = word_of_phonemes(speech.phonemes, [pronunciations[word] for word in words])
    if placed is None:
        return None
    return Utterance(text, voice, speech.phonemes, speech.ends_s, tuple(placed), torch.from_numpy(speech.pcm))


def _utterances(seed: int, pronunciations: Pronunciations, avoid: set[str], scratch: Path) -> Iterator[Utterance]:
    rng = random.Random(seed)
    while True:
        text = training_sentence(rng)
        if text.strip(".?") in avoid or len(text) > 200:
            continue
        voice = "slt" if rng.random() < SLT_SHARE else "rms"
        utterance = utter(text, voice, pronunciations, scratch)
        if utterance is not None:
            yield utterance


def write_shard(path: Path, utterances: list[Utterance]) -> None:
    """Save a shard atomically."""
    partial = path.with_suffix(".partial")
    torch.save([asdict(utterance) for utterance in utterances], partial)
    partial.rename(path)


def read_shard(path: Path) -> list[Utterance]:
    """Return the utterances of one shard."""
    return [Utterance(**record) for record in torch.load(path)]


def synthesise(folder: Path, worker: int, num_workers: int, count: int, avoid: set[str]) -> None:
    """Write this worker's share of `count` utterances, skipping sentences in `avoid` and existing shards."""
    pronunciations = load_pronunciations(folder)
    for shard in range(worker, -(-count // SHARD_SIZE), num_workers):
        path = folder / f"shard_{shard:04d}.pt"
        if path.exists():
            continue
        stream = _utterances(10_000 + shard, pronunciations, avoid, folder / f"scratch_{worker}.wav")
        write_shard(path, [next(stream) for _ in range(SHARD_SIZE)])
