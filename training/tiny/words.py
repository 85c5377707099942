"""Vocabulary from a frequency list, split into spoken, read-only and held-out words.

spoken     occur in synthesised utterances (rank < SPOKEN)
read       occur only in text-to-phoneme examples (the remaining words)
held out   occur in no training example; the open-vocabulary test uses them
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import wordfreq

from training.tiny.text import domain_vocabulary

MOST_FREQUENT = 60_000
SPOKEN = 12_000
HELD_OUT = 400
HELD_OUT_RANKS = range(150, 8000)
SHORT_WORDS = frozenset("a i an as at be by do go he if in is it me my no of oh on or so to up us we am".split())


@dataclass(frozen=True)
class Words:
    """Word lists, most frequent first. `held_out` is sorted."""

    spoken: tuple[str, ...]
    read: tuple[str, ...]
    held_out: tuple[str, ...]


def dictionary_path() -> Path:
    """Return the path of the CMU pronouncing dictionary in pocketsphinx's US-English model."""
    import pocketsphinx

    return Path(pocketsphinx.__file__).parent / "model/en-us/cmudict-en-us.dict"


def _is_word(word: str) -> bool:
    letters = word.replace("'", "")
    has_vowel = any(letter in "aeiouy" for letter in letters)
    return letters.isascii() and letters.isalpha() and has_vowel and (len(word) > 2 or word in SHORT_WORDS)


@cache
def load_words() -> Words:
    """Split the MOST_FREQUENT English words of the dictionary, always in the same way."""
    known = {line.split()[0] for line in dictionary_path().read_text().splitlines() if line.strip()}
    ranked = [word for word in wordfreq.top_n_list("en", MOST_FREQUENT) if word in known and _is_word(word)]
    in_domain = set(domain_vocabulary())
    candidates = [word for word in ranked[HELD_OUT_RANKS.start : HELD_OUT_RANKS.stop] if word not in in_domain]
    held_out = sorted(random.Random(5).sample(candidates, HELD_OUT))
    taught = [word for word in ranked if word not in set(held_out)]
    return Words(tuple(taught[:SPOKEN]), tuple(taught[SPOKEN:]), tuple(held_out))


def word_string(words: tuple[str, ...], rng: random.Random, low: int, high: int) -> str:
    """Return between `low` and `high` words, drawn by frequency, with an occasional comma and full stop."""
    chosen = []
    for _ in range(rng.randint(low, high)):
        skew = 3 if rng.random() < 0.5 else 1
        chosen.append(words[int(len(words) * rng.random() ** skew)] + ("," if rng.random() < 0.08 else ""))
    return " ".join(chosen).rstrip(",") + ("." if rng.random() < 0.3 else "")


def spelled_words(text: str) -> list[str]:
    """Return the words of a normalised text, excluding punctuation."""
    return [word for word in (piece.strip(",.?!") for piece in text.split()) if word]
