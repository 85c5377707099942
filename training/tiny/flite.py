"""Calls to the program flite (Debian package `flite`): pronunciations, and speech with exact phoneme times."""

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16_000
PRONOUNCING_VOICE = "kal"  # the fastest voice; all have the same lexicon and letter-to-sound rules


@dataclass(frozen=True)
class Speech:
    """Speech that flite has synthesised.

    Attributes:
        phonemes: Phonemes.
        ends: End time of each phoneme in seconds.
        pcm: Samples at 16 kHz, int16 [n].
    """

    phonemes: tuple[str, ...]
    ends_s: tuple[float, ...]
    pcm: np.ndarray


def _run(arguments: list[str]) -> list[str]:
    done = subprocess.run(["flite", *arguments], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.strip()]


def pronounce(words: list[str], batch: int = 500) -> dict[str, tuple[str, ...]]:
    """Return each word's phonemes, excluding silence; words that flite splits are left out."""
    said: dict[str, tuple[str, ...]] = {}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "words.txt"
        for start in range(0, len(words), batch):
            part = words[start : start + batch]
            page.write_text("\n\n".join(part) + "\n\n")  # a blank line ends an utterance
            lines = _run(["-voice", PRONOUNCING_VOICE, "-ps", "-f", str(page), "-o", "none"])
            if len(lines) != len(part):
                if len(part) > 1:
                    said.update(pronounce(part, max(1, batch // 8)))
                continue
            said.update(
                (word, tuple(p for p in line.split() if p != "pau")) for word, line in zip(part, lines, strict=True)
            )
    return {word: phonemes for word, phonemes in said.items() if phonemes}


def speak(text: str, voice: str, wav: Path) -> Speech | None:
    """Synthesise `text` in `voice`, with `wav` as a scratch file.

    Returns:
        The speech, or None if flite splits the text into several utterances.
    """
    lines = _run(["-voice", voice, "-psdur", "-t", text, "-o", str(wav)])
    if len(lines) != 1:
        return None
    pairs = [entry.rsplit(":", 1) for entry in lines[0].split()]
    pcm, rate = soundfile.read(wav, dtype="int16")
    assert rate == SAMPLE_RATE, rate
    return Speech(tuple(name for name, _ in pairs), tuple(float(end) for _, end in pairs), pcm)
