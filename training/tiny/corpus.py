"""Packed training sequences: flat arrays of rows, from which batches are cut on the training device."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from stretto.families.tiny import family as tiny
from training.tiny import builders
from training.tiny.builders import ARRAYS, KEPT_FIRST
from training.tiny.encoded import Transcript
from training.tiny.sequences import NO_TARGET, Rows

Item = TypeVar("Item")
ROUNDING = 32  # lengths of batches are multiples of this number of rows


def pack(sequences: Sequence[Rows]) -> dict[str, np.ndarray]:
    """Return sequences as flat arrays.

    These are the joined arrays of `Rows`; `first`, the first row of each sequence and the end of the last one; `audio`
    and `frames` of each sequence.
    """
    joined = {name: np.concatenate([getattr(rows, name) for rows in sequences]) for name in ARRAYS}
    lengths = [len(rows.stream_0) for rows in sequences]
    return joined | {
        "first": np.cumsum([0, *lengths]),
        "audio": np.asarray([rows.audio for rows in sequences]),
        "frames": np.asarray([rows.frames for rows in sequences]),
    }


@dataclass(frozen=True)
class Batch:
    """Padded sequences.

    Attributes:
        ids: Rows, int64 [B, T, 9].
        target: Stream 0 of the next row, or NO_TARGET, int64 [B, T].
        codes: Codes of the next row, or NO_TARGET, int64 [B, T, 7].
        look: Spans of rows that the guided attention heads should attend to, int64 [B, T, 4, 2], as in `Rows`.
    """

    ids: Tensor
    target: Tensor
    codes: Tensor
    look: Tensor


class Corpus:
    """Packed sequences of one task on a device.

    Args:
        parts: Results of `pack`.
        codes: Codes of all sequences in a row, uint8 [F, 7]; None if they have no audio.
        speaks: True if the codec streams are targets.
        max_rows: Longer sequences are left out.
    """

    def __init__(
        self,
        parts: Sequence[Mapping[str, np.ndarray]],
        codes: Tensor | None,
        speaks: bool,
        device: str,
        max_rows: int = 1 << 30,
    ):
        flat = {name: np.concatenate([part[name] for part in parts]) for name in (*ARRAYS, "audio", "frames")}
        lengths = np.concatenate([np.diff(part["first"]) for part in parts])
        first = np.cumsum([0, *lengths])[:-1]
        frames = flat["frames"]
        self.lengths = lengths
        self._usable = np.flatnonzero(lengths <= max_rows)
        self._speaks = speaks
        self._codes = codes
        self._tables = {name: torch.from_numpy(flat[name]).to(device) for name in ARRAYS}
        columns = {"first": first, "length": lengths, "audio": flat["audio"], "frames": frames}
        columns["code"] = np.cumsum([0, *frames])[:-1]
        self._of = {name: torch.from_numpy(column.astype(np.int64)).to(device) for name, column in columns.items()}
        self._delays = torch.tensor(tiny.LAYOUT.delays[1:], device=device)
        self._bases = tiny.FIRST_CODE + tiny.CODEBOOK_SIZE * torch.arange(tiny.NUM_CODEBOOKS, device=device)
        self._device = device

    def __len__(self) -> int:
        return len(self._usable)

    def batch(self, chosen: np.ndarray, null: np.ndarray | None = None) -> Batch:
        """Return the sequences `chosen`, int [B]. `null`, bool [B], marks those to make unconditional."""
        at = torch.from_numpy(chosen).to(self._device)
        longest = -(-int(self.lengths[chosen].max()) // ROUNDING) * ROUNDING
        row = torch.arange(longest, device=self._device)
        inside = row < self._of["length"][at][:, None]
        place = (self._of["first"][at][:, None] + row).clamp(max=len(self._tables["stream_0"]) - 1)
        padding = {"stream_0": tiny.PAD, "index": tiny.PAD, "target": NO_TARGET}
        found = {name: self._tables[name][place].long().where(inside, pad) for name, pad in padding.items()}
        look = self._tables["look"][place].long() * inside[..., None, None]
        codes = self._code_rows(at, row)
        if null is not None:
            hidden = torch.from_numpy(null).to(self._device)[:, None]
            start = self._of["audio"][at][:, None]
            context = (row >= KEPT_FIRST) & (row < start - 1)
            spoken = (row >= start) & (row < start + self._of["frames"][at][:, None])
            found["stream_0"] = found["stream_0"].masked_fill(hidden & (context | spoken), tiny.NULL)
            found["index"] = found["index"].masked_fill(hidden, tiny.PAD)
            found["target"] = found["target"].masked_fill(hidden, NO_TARGET)
            look = look * ~hidden[..., None, None]
        ids = torch.cat([found["stream_0"][..., None], codes, found["index"][..., None]], -1)
        wanted = torch.full_like(codes, NO_TARGET)
        if self._speaks:
            following = codes[:, 1:]
            wanted[:, :-1] = (following - self._bases).where(following != tiny.PAD, NO_TARGET)
        return Batch(ids, found["target"], wanted, look)

    def _code_rows(self, at: Tensor, row: Tensor) -> Tensor:
        """Return the delayed codec streams, [B, T, 7]."""
        shape = (len(at), len(row), tiny.NUM_CODEBOOKS)
        if self._codes is None:
            return torch.full(shape, tiny.PAD, device=self._device)
        frame = row[None, :, None] - self._of["audio"][at][:, None, None] - self._delays
        inside = (frame >= 0) & (frame < self._of["frames"][at][:, None, None])
        place = (self._of["code"][at][:, None, None] + frame).clamp(0, len(self._codes) - 1)
        codes = self._codes[place, torch.arange(tiny.NUM_CODEBOOKS, device=self._device)].long() + self._bases
        return codes.where(inside, tiny.PAD)

    def choices(self, rows: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield indices of sequences of similar length, at most `rows` padded rows a batch. Each epoch has all once."""
        while True:
            noisy = self.lengths[self._usable] * rng.uniform(0.95, 1.05, len(self._usable))
            order = self._usable[np.argsort(noisy)]
            batches = cut(order, self.lengths, rows)
            rng.shuffle(batches)
            yield from batches


def cut(order: np.ndarray, lengths: np.ndarray, rows: int) -> list[np.ndarray]:
    """Cut indices, sorted by length, into batches of at most `rows` padded rows. A longer item is alone."""
    batches = []
    start = 0
    while start < len(order):
        stop = start
        longest = 0
        while stop < len(order):
            longest = max(longest, -(-int(lengths[order[stop]]) // ROUNDING) * ROUNDING)
            if stop > start and longest * (stop + 1 - start) > rows:
                break
            stop += 1
        batches.append(order[start:stop])
        start = stop
    return batches


def save_packed(path: Path, packed: Mapping[str, np.ndarray]) -> None:
    """Write packed sequences atomically."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **packed)
    partial.rename(path)


def load_packed(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


class WordStrings:
    """Source of transcripts of random words, joined from their separate pronunciations."""

    def __init__(self, pronunciations: Mapping[str, tuple[int, ...]], rng: random.Random):
        self._words = list(pronunciations)
        self._pronunciations = pronunciations
        self._rng = rng

    def draw(self, count: int) -> Transcript:
        """Return `count` uniformly random words, because frequency does not matter for learning to spell."""
        text = " ".join(self._rng.choices(self._words, k=count))
        pause = tiny.PHONEMES.index("pau")
        phonemes = [pause]
        owners = [-1]
        for index, word in enumerate(text.split()):
            sound = self._pronunciations[word]
            phonemes += sound
            owners += [index] * len(sound)
        return Transcript(text, (*phonemes, pause), (*owners, -1))


def reading(strings: WordStrings, count: int, rng: random.Random) -> list[Rows]:
    """Return sequences of word strings, one in ten of which is to be spelled from its phonemes."""
    found = []
    for _ in range(count):
        transcript = strings.draw(rng.randint(1, 6))
        voice = rng.choice(list(tiny.VOICES))
        found.append(builders.spell(transcript) if rng.random() < 0.1 else builders.g2p(transcript, voice))
    return found
