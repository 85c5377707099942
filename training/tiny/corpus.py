"""Sources of training examples: encoded utterances, and word strings without audio."""

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch

from training.tiny.encoded import PHONEME_ID, Spoken, Transcript
from training.tiny.sequences import MAX_DELAY
from training.tiny.synthesise import Pronunciations
from training.tiny.words import load_words

Item = TypeVar("Item")

CODES, HEARD = "codes", "heard"  # names of the files with speech to generate, and with recordings to transcribe
BUCKET = 240  # number of utterances that are sorted by length together
MAX_LISTENED_FRAMES = 255 - MAX_DELAY  # frames of an audio prompt are numbered up to 255
# Number of most frequent words that are learned only from sentences, because they sound different in isolation.
CONTEXTUAL = 150


def write_encoded(path: Path, utterances: list[Spoken]) -> None:
    """Save encoded utterances atomically."""
    partial = path.with_suffix(".partial")
    torch.save([asdict(utterance) for utterance in utterances], partial)
    partial.rename(path)


def read_encoded(path: Path) -> list[Spoken]:
    """Return the utterances in a file that `write_encoded` wrote."""
    records = torch.load(path, weights_only=False)
    return [Spoken(**{**record, "transcript": Transcript(**record["transcript"])}) for record in records]


class Corpus:
    """Encoded utterances in a folder; `refresh` adds newly written files.

    Args:
        folder: Working folder of the training.
        name: Name of the files: CODES or HEARD.
    """

    def __init__(self, folder: Path, name: str = CODES):
        self._folder, self._name = folder, name
        self._read: set[Path] = set()
        self.utterances: list[Spoken] = []

    def refresh(self) -> None:
        for path in sorted(self._folder.glob(f"{self._name}_*.pt")):
            if path not in self._read:
                self._read.add(path)
                self.utterances += read_encoded(path)

    def batches(self, rows: int, rng: random.Random, max_frames: int = 1 << 20) -> Iterator[list[Spoken]]:
        """Yield batches of utterances of similar length forever, with at most `rows` rows each.

        Each epoch contains every utterance once.
        """
        while True:
            self.refresh()
            pool = [utterance for utterance in self.utterances if len(utterance.codes) <= max_frames]
            rng.shuffle(pool)
            for start in range(0, len(pool), BUCKET):
                batches = cut(pool[start : start + BUCKET], num_rows, rows)
                rng.shuffle(batches)
                yield from batches


def num_rows(utterance: Spoken) -> int:
    """Return the number of rows in a sequence, not counting spaces between words."""
    transcript = utterance.transcript
    return len(utterance.codes) + len(transcript.phonemes) + len(transcript.text) + MAX_DELAY


def cut(items: list[Item], num_rows: Callable[[Item], int], rows: int) -> list[list[Item]]:
    """Sort items by length and cut them into batches of at most `rows` padded rows; a longer item is on its own."""
    batches: list[list[Item]] = [[]]
    for item in sorted(items, key=num_rows):
        if batches[-1] and (len(batches[-1]) + 1) * num_rows(item) > rows:
            batches.append([])
        batches[-1].append(item)
    return batches


class WordStrings:
    """Transcripts of random words, joined from their separate pronunciations."""

    def __init__(self, pronunciations: Pronunciations, rng: random.Random):
        words = load_words()
        taught = (*words.spoken[CONTEXTUAL:], *words.read)
        self._words = [word for word in taught if word in pronunciations]
        self._pronunciations = pronunciations
        self._rng = rng

    def draw(self, count: int) -> Transcript:
        """Return `count` uniformly random words; frequency does not matter for learning to spell."""
        text = " ".join(self._rng.choices(self._words, k=count))
        phonemes, owners = [PHONEME_ID["pau"]], [-1]
        for index, word in enumerate(text.split()):
            sound = [PHONEME_ID[name] for name in self._pronunciations[word]]
            phonemes += sound
            owners += [index] * len(sound)
        return Transcript(text, (*phonemes, PHONEME_ID["pau"]), (*owners, -1))
