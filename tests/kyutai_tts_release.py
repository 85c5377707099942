"""A small random release of Kyutai TTS, its conversion, and the replies of the authors' code."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints.random_kyutai_tts import write_release
from scripts.kyutai_tts_replies import REPLIES, TEXTS
from stretto.convert.command import main
from stretto.families.kyutai_stt.family import PAD
from stretto.families.kyutai_tts.family import END_OF_WORDS, TtsVocabulary
from stretto.families.kyutai_tts.prompt import voice_rows
from stretto.families.kyutai_tts.words import WordStream
from stretto.families.plugin import VOCABULARY, config_at, family_at
from stretto.families.text import SENTENCEPIECE_FILE, sentencepiece_at
from stretto.records.prompt import Prompt

DATA = Path(__file__).parent / "data"


def make_checkpoint(folder: Path, **changed: Any) -> Path:
    """Write a release and convert it."""
    release = write_release(folder / "release", **changed)
    assert main(["kyutai-tts", "--model", str(release), "--out", str(folder / "checkpoint")]) == 0
    return folder / "checkpoint"


@dataclass(frozen=True)
class Reply:
    """A reply of the authors' code.

    Attributes:
        text: Text that was spoken.
        codes: Codes of the recording, [K, n].
        seed: Seed; 0 is greedy.
        scale: Guidance scale.
        rows: Rows that the model read, [T, 1 + K]; -1 for nothing.
        times: Steps in which words and breaks began.
        end: Step in which the text ended.
    """

    text: str
    codes: np.ndarray
    seed: int
    scale: float
    rows: np.ndarray
    times: list[int]
    end: int

    @property
    def num_frames(self) -> int:
        """Number of frames of the reply."""
        return self.end + 4 - self.codes.shape[1]


def replies() -> list[Reply]:
    """Return the authors' replies."""
    with np.load(DATA / "kyutai_tts_replies.npz") as found:
        return [
            Reply(
                TEXTS[at % 2],
                found[f"codes{at}"].astype(np.int64),
                seed,
                scale,
                found[f"rows{at}"].astype(np.int64),
                found[f"times{at}"].tolist(),
                int(found[f"end{at}"][0]),
            )
            for at, (seed, scale, _) in enumerate(REPLIES)
        ]


def vocabulary(checkpoint: Path) -> TtsVocabulary:
    """Return the vocabulary of a checkpoint."""
    return TtsVocabulary.from_record(config_at(checkpoint)[VOCABULARY])


def packed(checkpoint: Path, text: str) -> list[int]:
    """Return a text as packed words, without its end."""
    tokenizer = sentencepiece_at(checkpoint / SENTENCEPIECE_FILE)
    return WordStream(tokenizer).after(text, is_last=True)[0]


def make_prompt(checkpoint: Path, reply: Reply, **limits: int) -> Prompt:
    """Return the prompt of a reply of the authors."""
    sampling = family_at(checkpoint).tasks[0].sampling
    assert sampling.depth is not None
    if reply.seed == 0:
        depth = replace(sampling.depth, temperature=0.0)
        sampling = replace(sampling, audio=replace(sampling.audio, temperature=0.0), depth=depth)
    audio = replace(sampling.audio, **limits)
    sampling = replace(sampling, audio=audio, seed=reply.seed, guidance_scale=reply.scale)
    rows, tail = voice_rows(vocabulary(checkpoint), reply.codes)
    track = (*packed(checkpoint, reply.text), END_OF_WORDS)
    return Prompt("tts", rows, sampling, delayed_tail=tail, track=track, num_reference_rows=reply.codes.shape[1])


def rows_of(rows: list[list[int]], checkpoint: Path) -> np.ndarray:
    """Return the rows of a reply without the last, in the authors' form, [n, 1 + K]."""
    known, ids = vocabulary(checkpoint), np.array(rows[:-1])
    is_empty = ids == known.nothing
    ids[:, 0][ids[:, 0] == known.wish_id] = PAD
    ids[:, 1:] -= np.array(known.first_codes)
    return np.where(is_empty, -1, ids)
