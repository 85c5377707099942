"""Files of scripts and pronunciations, in compressed JSON."""

import gzip
import json
from pathlib import Path
from typing import Any

from training.tiny.teacher import Script

SCRIPTS = "scripts.json.gz"
READING = "reading.json.gz"
PRONUNCIATIONS = "pronunciations.json.gz"
PROSE = "everyday.json.gz"
MAX_PHONEMES = 400


def write(path: Path, items: Any) -> None:
    """Write items as compressed JSON."""
    with gzip.open(path, "wt") as file:
        json.dump(items, file)


def read_scripts(path: Path) -> list[Script]:
    """Return the scripts in a file."""
    with gzip.open(path, "rt") as file:
        records = json.load(file)
    return [
        Script(
            each["text"],
            tuple(each["phonemes"]),
            tuple(each["words"]),
            tuple(map(tuple, each["sentences"])),
            tuple(map(tuple, each["owners"])),
        )
        for each in records
    ]


def read_pronunciations(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the phonemes of each word."""
    with gzip.open(path, "rt") as file:
        return {word: tuple(phonemes) for word, phonemes in json.load(file).items()}
